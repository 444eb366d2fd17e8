// A shop's API, nothing wrong with it: its requests cost CPU time, a file, a query or a call to another service.
//   /health      nothing
//   /order?ms=N  N milliseconds of CPU time
//   /save        a file in the folder FOLDER, on disk before the answer
//   /stock       a row in the database at port DATABASE, through one connection, committed before the answer
//   /report      what the service at port BACKEND says
'use strict';
const http = require('node:http');
const net = require('node:net');
const { createHash, randomUUID } = require('node:crypto');
const { open, unlink } = require('node:fs/promises');

const { FOLDER, DATABASE, BACKEND } = process.env;

function order(ms) {
  const began = process.cpuUsage();
  let text = randomUUID();
  for (let used = 0; used < ms * 1000;) {
    for (let i = 0; i < 20; i++) text = createHash('sha256').update(text).digest('hex');
    const { user, system } = process.cpuUsage(began);
    used = user + system;
  }
  return text;
}

async function save() {
  const name = `${FOLDER}/${randomUUID()}`;
  const file = await open(name, 'w');
  await file.write(Buffer.alloc(16384, 1));
  await file.sync();
  await file.close();
  await unlink(name);
}

// One connection that answers in order, as a pool of one. PostgreSQL documentation, 55.7 Message Formats.
function database(port) {
  const socket = net.connect(port, '127.0.0.1');
  const waiting = [];
  let rest = Buffer.alloc(0);
  const message = (head, body) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(4 + body.length);
    socket.write(Buffer.concat([Buffer.from(head), length, Buffer.from(body)]));
  };
  socket.on('data', (data) => {
    rest = Buffer.concat([rest, data]);
    while (rest.length >= 5 && rest.length > rest.readUInt32BE(1)) {
      if (rest[0] === 0x5a) waiting.shift()();
      rest = rest.subarray(1 + rest.readUInt32BE(1));
    }
  });
  const ready = () => new Promise((resolve) => waiting.push(resolve));
  message('', '\0\x03\0\0user\0postgres\0database\0postgres\0\0');
  const query = (sql) => { message('Q', `${sql}\0`); return ready(); };
  return ready().then(() => query('CREATE TABLE IF NOT EXISTS stock (at timestamptz)')).then(() => query);
}

const report = () => new Promise((resolve, reject) => {
  http.get({ port: BACKEND, host: '127.0.0.1', path: '/' }, (answer) => answer.resume().on('end', resolve))
    .on('error', reject);
});

async function main() {
  const query = DATABASE && await database(Number(DATABASE));
  const ways = {
    '/health': () => {},
    '/order': (url) => { order(Number(url.searchParams.get('ms'))); },
    '/save': save,
    '/stock': () => query('INSERT INTO stock VALUES (now())'),
    '/report': report,
  };
  const server = http.createServer(async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    try {
      await ways[url.pathname](url);
    } catch (error) {
      response.statusCode = 503;
      console.error(error.message);
    }
    response.end('ok');
  });
  server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));
}
main();
