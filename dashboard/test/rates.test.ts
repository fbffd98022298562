import { expect, test } from 'vitest';

import { Rates, SAMPLE_MS, SAMPLES, summed, type Rate } from '../src/lib/rates';
import type { Worker } from '../src/lib/types';

function worker(name: string, tok_s: number | null, more: Partial<Worker> = {}): Worker {
  return { worker: name, status: 'online', tok_s, ...more } as Worker;
}

const at = (tick: number): number => tick * SAMPLE_MS + 1;
const tail = (rates: Rates, name: string, count: number): Rate[] => rates.of(name).slice(-count);

test('the newest sample is the last one, and what was before it moves on', () => {
  const rates = new Rates();
  expect(rates.of('a')).toEqual(Array(SAMPLES).fill(null));
  for (const [tick, tok_s] of [0, 1.5, 20].entries()) expect(rates.sample([worker('a', tok_s)], at(100 + tick))).toBe(true);
  expect(tail(rates, 'a', 4)).toEqual([null, 0, 1.5, 20]);
  expect(rates.of('a')).toHaveLength(SAMPLES);
});

test('within five seconds there is one sample, however often the page paints', () => {
  const rates = new Rates();
  rates.sample([worker('a', 0)], at(7));
  expect(rates.sample([worker('a', 2)], at(7) + 250)).toBe(false);
  expect(tail(rates, 'a', 2)).toEqual([null, 0]);
});

test('what nobody saw is a gap: a hidden page, a worker that is away or says nothing', () => {
  const rates = new Rates();
  rates.sample([worker('a', 2), worker('b', 1)], at(7));
  rates.sample([worker('a', null), worker('b', 9, { status: 'offline' })], at(8));
  rates.sample([worker('a', 4), worker('b', 0)], at(11));
  expect(tail(rates, 'a', 5)).toEqual([2, null, null, null, 4]);
  expect(tail(rates, 'b', 5)).toEqual([1, null, null, null, 0]);
  expect(summed(rates.of('a'))).toEqual({ mean: 3, most: 4 });
  rates.sample([], at(11 + 3 * SAMPLES));
  expect(summed(rates.of('a'))).toBeNull();
});

test('ten thousand workers are sampled, and those that are gone give their rows back', () => {
  const rates = new Rates();
  const many = Array.from({ length: 10_000 }, (_, number) => worker(`w${number}`, number));
  rates.sample(many, at(1));
  rates.sample(many, at(2));
  expect(tail(rates, 'w9999', 2)).toEqual([6_553.4, 6_553.4]);
  expect(tail(rates, 'w5000', 2)).toEqual([5_000, 5_000]);
  rates.sample(many.slice(5_000, 5_010), at(3));
  expect(tail(rates, 'w5000', 3)).toEqual([5_000, 5_000, 5_000]);
  expect(summed(rates.of('w1'))).toBeNull();
});
