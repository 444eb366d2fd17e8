// Computes for as long as it is asked to, in one turn of its event loop, and answers how long that took.
'use strict';
const http = require('node:http');

function computeInOneTurn(ms) {
  const began = performance.now();
  while (performance.now() - began < ms) JSON.parse('{"a":[1,2,3]}');
  return performance.now() - began;
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname === '/health') return response.end('ok');
  response.end(String(computeInOneTurn(Number(url.searchParams.get('ms')))));
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
