// A small API beside the culprit: its health says whether the host still serves anybody. With REDIS_PORT it asks Redis
// first, as an API with a session store does.
'use strict';
const http = require('node:http');
const net = require('node:net');

const waiting = [];
const redis = process.env.REDIS_PORT && net.connect(Number(process.env.REDIS_PORT), '127.0.0.1');
if (redis) {
  redis.on('data', (data) => {
    // One answer a line.
    for (let i = 0; i < data.length; i++) if (data[i] === 10) waiting.shift()?.(200);
  });
  redis.on('error', () => {});
  redis.on('close', () => { while (waiting.length) waiting.shift()(503); });
}

const server = http.createServer((request, response) => {
  const answer = (status) => { response.statusCode = status; response.end('health'); };
  if (!redis) return answer(200);
  if (redis.destroyed) return answer(503);
  waiting.push(answer);
  redis.write('PING\r\n');
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
