// The worker table: shards become rows, rows are searched and sorted.
import type { RosterShard, Worker } from './types';

/** Turns a shard's columns into workers. */
export function rowsOf(shard: RosterShard): Worker[] {
  return shard.rows.map((row) => Object.fromEntries(shard.columns.map((name, at) => [name, row[at]])) as unknown as Worker);
}

/** A shard as it was heard last: workers at a moment. */
export interface Told {
  at_ms: number;
  rows: Worker[];
}

const FORGOTTEN_MS = 20_000;

/**
 * Puts shards together. Each of several dispatchers tells its own workers; what one that is gone
 * told last is forgotten when the others have gone on for a while, and of two words the later counts.
 */
export function merged(shards: Iterable<Told>): Worker[] {
  const told = [...shards].sort((a, b) => a.at_ms - b.at_ms);
  const oldest = (told.at(-1)?.at_ms ?? 0) - FORGOTTEN_MS;
  const workers = new Map<string, Worker>();
  for (const { at_ms, rows } of told) if (at_ms >= oldest) for (const row of rows) workers.set(row.worker, row);
  return [...workers.values()];
}

export type Column = keyof Worker;

export interface Choice {
  words: string;
  status: string;
  by: Column;
  down: boolean;
}

/** Returns the workers that fit, in order; unknown values come last either way. */
export function chosen(workers: readonly Worker[], { words, status, by, down }: Choice): Worker[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (worker: Worker): boolean => {
    if (status === 'hot' ? !worker.throttled : status && worker.status !== status) return false;
    if (wanted.length === 0) return true;
    const text = `${worker.worker} ${worker.board ?? ''} ${worker.model ?? ''} ${worker.software ?? ''}`.toLowerCase();
    return wanted.every((word) => text.includes(word));
  };
  const sign = down ? -1 : 1;
  return workers.filter(fits).sort((a, b) => {
    const x = a[by];
    const y = b[by];
    if (x === y || (x == null && y == null)) return natural(a.worker, b.worker);
    if (x == null) return 1;
    if (y == null) return -1;
    const order = typeof x === 'string' ? natural(x, String(y)) : Number(x) - Number(y);
    return order === 0 ? natural(a.worker, b.worker) : sign * order;
  });
}

const collator = new Intl.Collator('en', { numeric: true });

/** Orders names with numbers in them as people do: w2 before w10. */
export function natural(a: string, b: string): number {
  return collator.compare(a, b);
}
