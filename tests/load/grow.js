// Grows by MIB_PER_SECOND in one named function, until it holds MIB_MAX. It writes the pages itself, so that the page
// faults have this function as the innermost frame.
'use strict';
const rate = Number(process.env.MIB_PER_SECOND), max = Number(process.env.MIB_MAX);
const MIB = 1 << 20;
const held = [];

function fillBuffersForever() {
  const buffer = Buffer.allocUnsafeSlow(MIB);
  for (let i = 0; i < buffer.length; i += 4096) buffer[i] = 1;
  held.push(buffer);
}

const began = performance.now();
const timer = setInterval(() => {
  const want = Math.min(max, (performance.now() - began) / 1000 * rate);
  while (held.length < want) fillBuffersForever();
  if (held.length >= max) clearInterval(timer);
}, 20);
process.stdin.on('end', () => process.exit()).resume();
console.log('growing');
