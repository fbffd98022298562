// What the charts draw, out of samples.

const MINUTE_MS = 60_000;

/** Returns the samples of the last span; the first column is the time. */
export function latest(samples: readonly number[][], span_ms: number): number[][] {
  const from = (samples.at(-1)?.[0] ?? 0) - span_ms;
  return samples.filter((row) => (row[0] ?? 0) >= from);
}

/** Turns a counter into its growth a minute; a restart of the dispatcher counts as nothing. */
export function perMinute(samples: readonly number[][], column: number): number[] {
  return samples.map((row, at) => {
    const before = samples[at - 1];
    if (!before) return 0;
    const grown = (row[column] ?? 0) - (before[column] ?? 0);
    const took = (row[0] ?? 0) - (before[0] ?? 0);
    return grown > 0 && took > 0 ? (grown * MINUTE_MS) / took : 0;
  });
}
