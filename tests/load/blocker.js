// An HTTP server that blocks its own event loop for as long as it is asked to, and says what it measured.
'use strict';
const http = require('node:http');
const { execFileSync } = require('node:child_process');

const cell = new Int32Array(new SharedArrayBuffer(4));
const ways = {
  // On the CPU.
  '/spin': (ms) => { for (const end = performance.now() + ms; performance.now() < end;); },
  // Blocked on a futex.
  '/wait': (ms) => Atomics.wait(cell, 0, 0, ms),
  // Blocked on a child process.
  '/exec': (ms) => execFileSync('sleep', [String(ms / 1000)]),
  // Not at all: it turns all the time and never sleeps.
  '/poll': (ms, done) => {
    const end = performance.now() + ms;
    const turn = () => (performance.now() < end ? setImmediate(turn) : done());
    turn();
  },
};

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  const began = performance.now();
  const cpu = process.cpuUsage();
  const done = () => {
    const wall_ms = performance.now() - began;
    const used = process.cpuUsage(cpu);
    response.end(JSON.stringify({ wall_ms, cpu_ms: (used.user + used.system) / 1000 }));
  };
  const way = ways[url.pathname];
  way(Number(url.searchParams.get('ms')), done);
  if (way.length < 2) done();
});
server.listen(0, '127.0.0.1', () => console.log(`port=${server.address().port}`));
