// Takes uploads. With KEEP=1 it keeps them all, as a cache without a bound does; else it counts their bytes and drops them.
'use strict';
const http = require('node:http');
const keep = process.env.KEEP === '1';
const images = [];
let bytes = 0;

function keepUploadedImage(chunk) { images.push(chunk); }

const server = http.createServer((request, response) => {
  if (request.url === '/health') return response.end('ok');
  request.on('data', (chunk) => {
    bytes += chunk.length;
    if (keep) keepUploadedImage(Buffer.from(chunk));
  });
  request.on('end', () => response.end(JSON.stringify({ bytes })));
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
