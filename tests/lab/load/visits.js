// An API that counts visits in Redis. With POOLED=0 it opens a connection for each, and closes it.
'use strict';
const http = require('node:http');
const net = require('node:net');

const connect = () => net.connect(Number(process.env.REDIS), '127.0.0.1');
const shared = process.env.POOLED === '1' ? connect() : null;
const waiting = [];
shared?.on('data', (data) => {
  for (const _ of data.toString().matchAll(/:\d+\r\n/g)) waiting.shift()();
});

const countOverShared = () => new Promise((resolve) => {
  waiting.push(resolve);
  shared.write('INCR visits\r\n');
});

const countOverOwn = () => new Promise((resolve, reject) => {
  const socket = connect();
  socket.on('connect', () => socket.write('INCR visits\r\n'));
  socket.on('data', () => { socket.end(); resolve(); });
  socket.on('error', reject);
});

const count = shared ? countOverShared : countOverOwn;
const server = http.createServer((request, response) => {
  count().then(() => response.end(), (error) => response.writeHead(500).end(error.message));
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
