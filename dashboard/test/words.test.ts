import { expect, test } from 'vitest';

import { ago, clock, memory, took, usd, usdShort, whole } from '../src/lib/format';
import { matches } from '../src/lib/bus';
import { latest, perMinute } from '../src/lib/series';
import { momentsOf, stepsOf } from '../src/lib/timeline';
import { events } from '../src/lib/ask';
import { words } from '../src/lib/words';
import type { Job } from '../src/lib/types';

test('every word has its Chinese', () => {
  expect(Object.keys(words.zh).sort()).toEqual(Object.keys(words.en).sort());
  const units = new Set(['p95', 'cpu', 'language', 'example_3', 'of']);
  for (const [name, word] of Object.entries(words.zh)) if (!units.has(name)) expect(word, name).toMatch(/[\u4e00-\u9fff]/);
});

test('spans, amounts and moments as people say them', () => {
  expect([0, 999, 1_000, 61_000, 7_200_000, 172_800_000].map(took)).toEqual(['0 ms', '999 ms', '1.0 s', '1 min', '2 h', '2 d']);
  expect([0, 0.0000052, 1.5].map(usd)).toEqual(['$0', '$0.0000052', '$1.50']);
  expect([0, 0.0000052, 0.0021, 1_234.5].map(usdShort)).toEqual(['$0', '< $0.0001', '$0.0021', '$1,234.50']);
  expect([-3, 5_900, 61_000].map(ago)).toEqual(['0 s', '5 s', '1 min']);
  expect([512, 8_192].map(memory)).toEqual(['512 MB', '8.0 GB']);
  expect([whole(null), took(undefined), clock(null)]).toEqual(['–', '–', '–']);
});

test('topic filters match as MQTT says', () => {
  expect(matches('fleet/roster/+', 'fleet/roster/12')).toBe(true);
  expect(matches('fleet/roster/+', 'fleet/roster/12/x')).toBe(false);
  expect(matches('fleet/#', 'fleet/alerts/a')).toBe(true);
  expect(matches('fleet/summary', 'fleet/summary2')).toBe(false);
});

test('counters become growth a minute; a restart is no loss', () => {
  expect(perMinute([[0, 10], [30_000, 20], [60_000, 3], [120_000, 5]], 1)).toEqual([0, 20, 0, 2]);
  expect(latest([[0, 1], [50, 2], [100, 3]], 60)).toEqual([[50, 2], [100, 3]]);
});

test('a job waits, reads and writes; an open one counts on', () => {
  const job = { received_at_ms: 0, finished_at_ms: 900, result: { status: 'ok', timing_ms: { queued: 100, first_token: 400, total: 900 } } } as unknown as Job;
  expect(stepsOf(job, 5_000)).toEqual([{ name: 'waited', ms: 100 }, { name: 'first_token', ms: 300 }, { name: 'answer', ms: 500 }]);
  expect(stepsOf({ received_at_ms: 0 } as Job, 700)).toEqual([{ name: 'waited', ms: 700 }]);
  const told = { received_at_ms: 0, finished_at_ms: 47, result: { status: 'ok', answered_by: 'cloud', timing_ms: { total: 47 } } } as unknown as Job;
  expect(stepsOf(told, 5_000)).toEqual([{ name: 'in_cloud_span', ms: 47 }]);
});

test('every attempt of a job has its place in what happened', () => {
  const job = {
    received_at_ms: 1_000, assigned_at_ms: 1_800, finished_at_ms: 5_000, attempts: 3, status: 'ok',
    past: [
      { attempt: 1, worker: 'w1', began_at_ms: 1_010, ended_at_ms: 1_700, code: 'worker_lost' },
      { attempt: 2, worker: 'w2', began_at_ms: 1_800, ended_at_ms: 2_500, code: 'complex' },
    ],
    result: { status: 'ok', timing_ms: { total: 4_000, first_token: 3_000 } },
  } as unknown as Job;
  const moments = momentsOf(job);
  expect(moments.map(({ at_ms, what }) => [at_ms, what])).toEqual([
    [1_000, 'received'], [1_010, 'began'], [1_700, 'ended'], [1_800, 'began'], [2_500, 'ended'], [4_000, 'first_token'], [5_000, 'result'],
  ]);
  expect(moments[2]).toMatchObject({ attempt: 1, worker: 'w1', code: 'worker_lost', took_ms: 690 });
  const simple = { received_at_ms: 0, assigned_at_ms: 4, attempts: 1, worker: 'w1', status: 'running' } as unknown as Job;
  expect(momentsOf(simple).map(({ what, worker }) => [what, worker])).toEqual([['received', undefined], ['began', 'w1']]);
});

test('events are cut out of a stream however it is cut', async () => {
  const text = ': keep-alive\n\ndata: {"a":1}\n\nevent: x\ndata: two\n\ndata: [DONE]\n\n';
  for (const size of [1, 7, 1_000]) {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        const bytes = new TextEncoder().encode(text);
        for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
        controller.close();
      },
    });
    const found: string[] = [];
    for await (const event of events(body)) found.push(event);
    expect(found).toEqual(['{"a":1}', 'two', '[DONE]']);
  }
});
