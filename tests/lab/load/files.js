// An API that opens a file for each order. With LEAK=1 it forgets to close it; else it keeps a steady number open.
'use strict';
const fs = require('node:fs');
const http = require('node:http');

const leaks = process.env.LEAK === '1';
const kept = leaks ? [] : Array.from({ length: 120 }, () => fs.openSync(__filename));

function readTemplate(forgets) {
  const file = fs.openSync(__filename);
  if (!forgets) fs.closeSync(file);
}

const server = http.createServer((request, response) => {
  try {
    readTemplate(leaks && request.url === '/orders');
    response.end(`${kept.length}`);
  } catch (error) {
    response.writeHead(500).end(error.message);
  }
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
