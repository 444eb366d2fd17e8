// An API that exports a table as JSON. GET /export?rows=N makes the whole text in one turn of the event loop; with
// PAGED=1 it makes pages of 500 rows, a turn each. What it throws nobody catches, so it ends the process.
'use strict';
const http = require('node:http');
const paged = process.env.PAGED === '1';
const PAGE = 500;
const note = 'delivered to the neighbour; "leave at the door" '.repeat(2);

const row = (id) => ({ id, customer: 'customer', city: 'city', note, paid: true });
function rowsFrom(first, count) { return Array.from({ length: count }, (_, i) => row(first + i)); }
function stringifyWholeTable(rows) { return JSON.stringify(rows); }

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname === '/health') return response.end('ok');
  const count = Number(url.searchParams.get('rows'));
  if (!paged) return response.end(String(stringifyWholeTable(rowsFrom(0, count)).length));
  let bytes = 0;
  const next = (first) => {
    if (first >= count) return response.end(String(bytes));
    bytes += JSON.stringify(rowsFrom(first, Math.min(PAGE, count - first))).length;
    setImmediate(next, first + PAGE);
  };
  next(0);
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
