// An API that has another program make a thumbnail for each order. CONVERT_S is how long that takes; with a broken image, for ever.
'use strict';
const http = require('node:http');
const { spawn } = require('node:child_process');

const server = http.createServer((request, response) => {
  const seconds = request.url === '/orders' ? process.env.CONVERT_S : '0';
  const converter = spawn('sleep', [seconds], { stdio: 'ignore' });
  converter.on('spawn', () => response.writeHead(200).end());
  converter.on('error', (error) => response.writeHead(500).end(error.message));
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
