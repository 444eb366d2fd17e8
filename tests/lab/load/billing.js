// Bills orders, one after the other: a transaction, and in its midst a call to the payment provider, without a time limit.
'use strict';
const http = require('node:http');
const { Client } = require('pg');

const client = new Client({ host: '127.0.0.1', port: Number(process.env.PGPORT), user: 'app', database: 'postgres' });

const charge = () => new Promise((resolve, reject) => {
  const provider = { host: '127.0.0.1', port: Number(process.env.PROVIDER), path: '/charge' };
  http.get(provider, (response) => response.resume().on('end', resolve)).on('error', reject);
});

async function bill() {
  await client.query('BEGIN');
  await client.query('UPDATE stock SET pieces = pieces - 1 WHERE id = 1');
  await charge();
  await client.query('COMMIT');
}

async function main() {
  await client.connect();
  console.log('billing');
  for (;;) {
    await bill();
    await new Promise((done) => setTimeout(done, Number(process.env.PAUSE_MS)));
  }
}
main();
