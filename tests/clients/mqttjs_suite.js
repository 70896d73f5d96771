// Checks with MQTT.js in both protocol versions; those of 5.0 alone are in mqttjs_five.js.

'use strict';

const assert = require('node:assert/strict');
const { Client, NotOurs, OTHER_BROKER, V3, V5, numbered, within } = require('./mqttjs_client.js');
const FIVE = require('./mqttjs_five.js');

const LARGE = 64 << 20;

async function checkQos(version, qos) {
  const topic = `qos/${qos}`;
  const publisher = await Client.connect(version);
  for (const granted of [0, 1, 2]) {
    const subscriber = await Client.connect(version);
    await subscriber.subscribe(topic, granted);
    const payloads = numbered(200);
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, qos)));
    for (const payload of payloads) {
      assert.deepEqual(await subscriber.message(), [Math.min(qos, granted), false, topic, payload]);
    }
    await subscriber.end();
  }
  await publisher.end();
}

async function checkRetained(version) {
  const topic = 'retained/topic';
  const publisher = await Client.connect(version);
  for (const payload of ['first', 'second']) {
    await publisher.publish(topic, payload, 1, true);
    const subscriber = await Client.connect(version);
    await subscriber.subscribe('retained/+', 2);
    assert.deepEqual(await subscriber.message(), [1, true, topic, payload]);
    await subscriber.end();
  }
  const live = await Client.connect(version);
  await live.subscribe('retained/#', 2);
  assert.deepEqual(await live.message(), [1, true, topic, 'second']);
  await publisher.publish(topic, '', 1, true);
  assert.deepEqual(await live.message(), [1, false, topic, '']);
  await live.end();
  const subscriber = await Client.connect(version);
  await subscriber.subscribe('retained/#', 2);
  await publisher.publish('retained/end', 'end', 1);
  assert.deepEqual(await subscriber.message(), [1, false, 'retained/end', 'end']);
  await subscriber.end();
  await publisher.end();
}

function connectWithWill(version, topic) {
  return Client.connect(version, { will: { topic, payload: 'gone', qos: 2, retain: false } });
}

async function checkWill(version) {
  const topic = 'will/abrupt';
  const watcher = await Client.connect(version);
  await watcher.subscribe(topic, 2);
  await (await connectWithWill(version, topic)).abort();
  assert.deepEqual(await watcher.message(), [2, false, topic, 'gone']);
  await watcher.end();
}

async function checkNoWill(version) {
  const topic = 'will/orderly';
  const watcher = await Client.connect(version);
  await watcher.subscribe(topic, 2);
  await (await connectWithWill(version, topic)).end();
  await watcher.publish(topic, 'end', 2);
  assert.deepEqual(await watcher.message(), [2, false, topic, 'end']);
  await watcher.end();
}

async function checkSession(version) {
  for (const qos of [1, 2]) {
    const topic = `session/${qos}`;
    const options = { clientId: `mqttjs-session-${version}-${qos}`, clean: false };
    const before = await Client.connect(version, options);
    assert.equal(before.sessionPresent, false);
    await before.subscribe(topic, qos);
    await before.end();
    const publisher = await Client.connect(version);
    // More than may be in flight at once.
    const payloads = numbered(500);
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, qos)));
    await publisher.end();
    const after = await Client.connect(version, options);
    assert.equal(after.sessionPresent, true);
    for (const payload of payloads) {
      assert.deepEqual(await after.message(), [qos, false, topic, payload]);
    }
    await after.end();
    const clean = await Client.connect(version, { ...options, clean: true });
    assert.equal(clean.sessionPresent, false);
    await clean.end();
  }
}

async function checkTakeover(version) {
  const topic = 'takeover/topic';
  const options = { clientId: `mqttjs-takeover-${version}`, clean: false };
  const first = await Client.connect(version, options);
  await first.subscribe(topic, 1);
  const second = await Client.connect(version, options);
  assert.equal(second.sessionPresent, true);
  await within(first.closed, 'close of the first connection');
  if (version === V5 && !OTHER_BROKER) assert.equal(await first.disconnects.take('DISCONNECT'), 0x8e);
  await second.publish(topic, 'to the second', 1);
  assert.deepEqual(await second.message(), [1, false, topic, 'to the second']);
  assert.deepEqual(first.messages.items, []);
  await second.end();
}

async function checkConnections(version) {
  const numbers = Array.from({ length: 1000 }, (_, number) => number);
  const collector = await Client.connect(version);
  await collector.subscribe('many/up/+', 1);
  const clients = await Promise.all(numbers.map(() => Client.connect(version)));
  await Promise.all(clients.map((client) => client.subscribe('many/down', 1)));
  await collector.publish('many/down', 'to all', 1);
  for (const client of clients) {
    assert.deepEqual(await client.message(), [1, false, 'many/down', 'to all']);
  }
  await Promise.all(clients.map((client, number) => client.publish(`many/up/${number}`, `${number}`, 1)));
  const found = new Set();
  for (const _ of numbers) found.add((await collector.message())[3]);
  assert.equal(found.size, numbers.length);
  await Promise.all([collector, ...clients].map((client) => client.end()));
}

async function checkLarge(version) {
  const topic = 'large/topic';
  const payload = Buffer.concat([Buffer.alloc(LARGE, '0123456789abcdef'), Buffer.from('end')]);
  for (const qos of [0, 1, 2]) {
    const publisher = await Client.connect(version);
    const subscriber = await Client.connect(version);
    await subscriber.subscribe(topic, qos);
    await publisher.publish(topic, payload, qos);
    const found = await subscriber.packet();
    assert.deepEqual([found.qos, found.retain, found.topic], [qos, false, topic]);
    assert.equal(found.payload.length, payload.length);
    assert.ok(found.payload.equals(payload), 'payload is the same');
    await subscriber.end();
    await publisher.end();
  }
}

// With both versions.
const CHECKS = {
  'qos 0': (version) => checkQos(version, 0),
  'qos 1': (version) => checkQos(version, 1),
  'qos 2': (version) => checkQos(version, 2),
  retained: checkRetained,
  will: checkWill,
  'no will after a disconnect': checkNoWill,
  session: checkSession,
  'take-over': checkTakeover,
  'large payload': checkLarge,
  '1000 connections': checkConnections,
};

async function main() {
  const checks = [];
  for (const version of [V3, V5]) {
    for (const [name, check] of Object.entries(CHECKS)) checks.push([`${version} ${name}`, () => check(version)]);
  }
  for (const [name, check] of Object.entries(FIVE)) checks.push([`${V5} ${name}`, check]);
  let failed = 0;
  for (const [name, check] of checks) {
    try {
      await check();
      console.log(`ok ${name}`);
    } catch (error) {
      if (error instanceof NotOurs) {
        console.log(`part ${name}`);
        continue;
      }
      failed += 1;
      console.error(error);
      console.log(`FAIL ${name}: ${error.message.split(/\s+/).join(' ')}`);
    }
  }
  // Not when all is done: what a failed check left open must not keep the program.
  process.exit(failed ? 1 : 0);
}

main();
