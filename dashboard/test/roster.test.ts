import { expect, test } from 'vitest';

import { chosen, merged, natural, rowsOf } from '../src/lib/roster';
import type { Worker } from '../src/lib/types';

function worker(name: string, more: Partial<Worker> = {}): Worker {
  return {
    worker: name, status: 'online', weight: 0.5, compute: 0.5, bandwidth: 0.5, inflight: 0, slots: 1, seen_at_ms: 0,
    left_alone: false, board: null, software: null, model: null, measured_tok_s: null, tok_s: null, temp_c: null,
    throttled: null, cpu_pct: null, mem_pct: null, ...more,
  };
}

const all = { words: '', status: '', by: 'worker', down: false } as const;
const names = (workers: Worker[]): string => workers.map((each) => each.worker).join(' ');

test('a shard becomes workers by its columns, whatever their order', () => {
  const shard = { at_ms: 1, shard: 3, columns: ['weight', 'worker', 'new'], rows: [[0.25, 'w9', 1]] };
  expect(rowsOf(shard)[0]).toMatchObject({ worker: 'w9', weight: 0.25 });
});

test('names are ordered as people order them', () => {
  expect(['w10', 'w2', 'w1'].sort(natural)).toEqual(['w1', 'w2', 'w10']);
});

test('every word must be found, in the name, the board or the model', () => {
  const fleet = [worker('hall-1', { board: 'Raspberry Pi 5' }), worker('hall-2', { board: 'Jetson' }), worker('yard', { model: 'tiny' })];
  expect(names(chosen(fleet, { ...all, words: 'hall pi' }))).toBe('hall-1');
  expect(names(chosen(fleet, { ...all, words: 'TINY' }))).toBe('yard');
  expect(chosen(fleet, { ...all, words: 'cellar' })).toEqual([]);
});

test('what nobody knows comes last, up or down, and equals keep the order of names', () => {
  const fleet = [worker('a'), worker('b', { temp_c: 50 }), worker('c', { temp_c: 70 }), worker('d', { temp_c: 50 })];
  expect(names(chosen(fleet, { ...all, by: 'temp_c', down: true }))).toBe('c b d a');
  expect(names(chosen(fleet, { ...all, by: 'temp_c', down: false }))).toBe('b d c a');
});

test('texts are ordered as people order them, up and down, whoever came first', () => {
  const fleet = [worker('w10', { board: 'Pi 5' }), worker('w2', { board: 'Jetson' })];
  expect(names(chosen(fleet, all))).toBe('w2 w10');
  const grown = [worker('w3', { board: 'Pi 4' }), ...fleet, worker('w1', { board: 'Pi 4' })];
  expect(names(chosen(grown, all))).toBe('w1 w2 w3 w10');
  expect(names(chosen(grown, { ...all, down: true }))).toBe('w10 w3 w2 w1');
  expect(names(chosen(grown, { ...all, by: 'board' }))).toBe('w2 w1 w3 w10');
  expect(names(chosen(grown, { ...all, by: 'board', down: true }))).toBe('w10 w1 w3 w2');
});

test('hot ones are those that are throttled', () => {
  const fleet = [worker('a', { throttled: true }), worker('b', { throttled: false }), worker('c', { status: 'offline' })];
  expect(names(chosen(fleet, { ...all, status: 'hot' }))).toBe('a');
  expect(names(chosen(fleet, { ...all, status: 'offline' }))).toBe('c');
});

test('ten thousand workers are searched and sorted', () => {
  const fleet = Array.from({ length: 10_000 }, (_, at) => worker(`w${at}`, { temp_c: at % 90 }));
  expect(chosen(fleet, { ...all, words: '99', by: 'temp_c', down: true })).toHaveLength(280);
});

test('of several dispatchers each tells its own, and one that is gone is forgotten', () => {
  const told = (at_ms: number, ...rows: Worker[]) => ({ at_ms, rows });
  const moved = worker('b', { inflight: 1 });
  expect(names(merged([told(30_000, worker('a')), told(29_000, worker('b')), told(30_500, moved)]))).toBe('a b');
  expect(merged([told(29_000, worker('b')), told(30_500, moved)])).toEqual([moved]);
  expect(names(merged([told(9_000, worker('old')), told(30_000, worker('a'))]))).toBe('a');
  expect(merged([])).toEqual([]);
});
