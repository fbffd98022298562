import { afterEach, beforeEach, expect, test, vi } from 'vitest';

import { Pace } from '../src/lib/pace';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'performance'] }));
afterEach(() => void vi.useRealTimers());

/** Returns a pace of 200 ms, and the moments at which it acted. */
function paced(): { pace: Pace; at: number[]; pass: (ms: number) => void } {
  const at: number[] = [];
  const begun = performance.now();
  return { pace: new Pace(200, () => at.push(performance.now() - begun)), at, pass: (ms) => vi.advanceTimersByTime(ms) };
}

test('what is asked for seldom is done at once', () => {
  const { pace, at, pass } = paced();
  pace.ask();
  pass(250);
  pace.ask();
  pass(250);
  expect(at).toEqual([0, 250]);
});

test('what is asked for often is done together, once a span, and the last of it is not lost', () => {
  const { pace, at, pass } = paced();
  for (let asked = 0; asked < 15; asked += 1) {
    pace.ask();
    pass(30);
  }
  pass(1_000);
  expect(at).toEqual([0, 200, 400, 600]);
});

test('after a rest the first one waits, too', () => {
  const { pace, at, pass } = paced();
  pace.rest();
  pass(50);
  pace.ask();
  pace.ask();
  pass(1_000);
  expect(at).toEqual([200]);
});
