// The worker table: shards become rows, rows are searched and sorted.
import type { RosterShard, Worker } from './types';

/** Turns a shard's columns into workers. */
export function rowsOf(shard: RosterShard): Worker[] {
  return shard.rows.map((row) => Object.fromEntries(shard.columns.map((name, at) => [name, row[at]])) as unknown as Worker);
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
