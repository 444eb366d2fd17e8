// An API before PostgreSQL, with node-postgres and its pool, as most are.
'use strict';
const http = require('node:http');
const { Pool } = require('pg');

const size = Number(process.env.POOL ?? 10);
const pool = new Pool({
  host: process.env.PGHOST ?? '127.0.0.1',
  port: Number(process.env.PGPORT),
  user: 'app',
  database: 'postgres',
  max: size,
  idleTimeoutMillis: Number(process.env.IDLE_MS ?? 0),
});
pool.on('error', (error) => console.error(`pool: ${error.message}`));

const ORDER = 'UPDATE stock SET pieces = pieces - 1 WHERE id = $1 RETURNING pieces';
let ordered = 0;

const routes = {
  '/catalogue': () => pool.query(process.env.CATALOGUE ?? 'SELECT count(*) FROM orders'),
  // One item after the other, so that one order in ten is for the first.
  '/orders': () => pool.query(ORDER, [1 + (ordered++ % 10)]),
  // Three reports, which do not wait for each other.
  '/dashboard': () => Promise.all([1, 2, 3].map(() => pool.query(process.env.REPORT))).then(([first]) => first),
  // A document made of four reports. With BUG=1 its text gets longer than V8 allows, in a callback that nobody catches,
  // while the reports still run. The real error takes half a gigabyte first; this way it takes none.
  '/export': () => {
    const seconds = Number(process.env.REPORT_S);
    const reports = Array.from({ length: 4 }, () => pool.query('SELECT pg_sleep($1)', [seconds]));
    if (process.env.BUG === '1') setTimeout(() => JSON.stringify('x'.repeat(2 ** 30)), 200);
    return Promise.all(reports).then(([first]) => first);
  },
};

const server = http.createServer((request, response) => {
  const route = routes[request.url];
  if (!route) return response.writeHead(404).end();
  const fail = (error) => response.writeHead(500).end(error.message);
  route().then((result) => response.end(JSON.stringify(result.rows)), fail);
});

process.on('SIGINT', () => server.close(() => pool.end().then(() => process.exit(0))));

// A pool that is full from the start, as after the first busy minute, or with as many as the quiet hours need.
const warm = Array.from({ length: Number(process.env.WARM ?? size) }, () => pool.query('SELECT 1'));
Promise.allSettled(warm).then((done) => {
  const open = done.filter((query) => query.status === 'fulfilled').length;
  server.listen(Number(process.env.PORT), '127.0.0.1', () => {
    console.log(`listening with ${open} connections`);
    process.send?.('ready');
  });
});
