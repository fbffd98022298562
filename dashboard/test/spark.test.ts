import { expect, test } from 'vitest';

import { lineOf } from '../src/lib/spark';

test('a line stands on the floor at both ends, and its most is at the top', () => {
  expect(lineOf([10, 20, 5], 20)).toBe('M0 1V0.5H1L2 0L3 0.75V1');
});

test('what nobody knows is a gap, and nothing where nothing is known', () => {
  expect(lineOf([null, 2, null, null, 1, 1], 2)).toBe('M1 1V0H2V1M4 1V0.5H5L6 0.5V1');
  expect(lineOf([null, null], 2)).toBe('');
  expect(lineOf([], 0)).toBe('');
});

test('a board that writes next to nothing is not drawn as a busy one', () => {
  expect(lineOf([0.1, 0], 0.1)).toBe('M0 1V0.9H1L2 1V1');
});
