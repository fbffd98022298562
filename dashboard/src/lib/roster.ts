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
  ranks.know(workers.keys());
  return [...workers.values()].sort((a, b) => ranks.of(a.worker) - ranks.of(b.worker));
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
  const fitting = workers.filter(fits);
  for (const column of ['worker', by] as const) ranks.know(fitting.map((worker) => worker[column]));
  const place = (value: unknown): number => (typeof value === 'string' ? ranks.of(value) : Number(value));
  const sign = down ? -1 : 1;
  return fitting.sort((a, b) => {
    const x = a[by];
    const y = b[by];
    if (x == null || y == null) return Number(x == null) - Number(y == null) || ranks.of(a.worker) - ranks.of(b.worker);
    return sign * (place(x) - place(y)) || ranks.of(a.worker) - ranks.of(b.worker);
  });
}

const collator = new Intl.Collator('en', { numeric: true });

/** Orders names with numbers in them as people do: w2 before w10. */
export function natural(a: string, b: string): number {
  return collator.compare(a, b);
}

/**
 * The places of texts in that order. To compare ten thousand names anew for each painting would
 * take longer than all else on the page; numbers are compared in no time.
 */
class Ranks {
  private readonly places = new Map<string, number>();
  private sorted: string[] = [];

  /** Takes in what may be new; whatever is no text has no place. */
  know(values: Iterable<unknown>): void {
    const fresh = new Set<string>();
    for (const value of values) if (typeof value === 'string' && !this.places.has(value)) fresh.add(value);
    if (fresh.size === 0) return;
    // What is sorted already is one run to the sort, so that a few newcomers cost little.
    this.sorted = [...this.sorted, ...[...fresh].sort(natural)].sort(natural);
    this.sorted.forEach((text, at) => this.places.set(text, at));
  }

  of(text: string): number {
    return this.places.get(text) ?? this.places.size;
  }
}

const ranks = new Ranks();
