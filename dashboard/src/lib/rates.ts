// How many tokens a second each worker wrote in the last minutes: two bytes a worker and sample, so that
// ten thousand of them take 1.2 MB, and nothing is made anew when a sample comes.
import type { Worker } from './types';

export const SAMPLES = 60;
export const SAMPLE_MS = 5_000;
const SCALE = 10;
const UNKNOWN = 65_535;
const SPARE_ROWS = 256;

export type Rate = number | null;

/** What workers said with their heartbeats, each of which covers the time since the one before. */
export class Rates {
  private readonly rows = new Map<string, number>();
  private kept = new Uint16Array(SPARE_ROWS * SAMPLES).fill(UNKNOWN);
  private newest = SAMPLES - 1;
  private tick = -1;

  /** Takes a sample where one is due; returns whether it did. What nobody sampled stays a gap. */
  sample(workers: readonly Worker[], now_ms: number): boolean {
    const tick = Math.floor(now_ms / SAMPLE_MS);
    if (tick <= this.tick) return false;
    const passed = this.tick < 0 ? 1 : Math.min(tick - this.tick, SAMPLES);
    this.tick = tick;
    for (let step = 0; step < passed; step += 1) this.begin();
    if (this.rows.size > 2 * workers.length + SPARE_ROWS) this.forgetAllBut(workers);
    for (const { worker, status, tok_s } of workers) {
      const row = this.rowOf(worker);
      if (status !== 'offline' && tok_s != null) this.kept[row * SAMPLES + this.newest] = Math.min(Math.round(SCALE * tok_s), UNKNOWN - 1);
    }
    return true;
  }

  /** Returns the rates of one worker, oldest first; null where nothing is known. */
  of(name: string): Rate[] {
    const row = this.rows.get(name);
    return Array.from({ length: SAMPLES }, (_, at) => {
      const kept = row === undefined ? UNKNOWN : (this.kept[row * SAMPLES + ((this.newest + 1 + at) % SAMPLES)] ?? UNKNOWN);
      return kept === UNKNOWN ? null : kept / SCALE;
    });
  }

  private begin(): void {
    this.newest = (this.newest + 1) % SAMPLES;
    for (let at = this.newest; at < this.kept.length; at += SAMPLES) this.kept[at] = UNKNOWN;
  }

  private rowOf(name: string): number {
    let row = this.rows.get(name);
    if (row === undefined) {
      row = this.rows.size;
      this.rows.set(name, row);
      if ((row + 1) * SAMPLES > this.kept.length) {
        const grown = new Uint16Array(2 * this.kept.length).fill(UNKNOWN);
        grown.set(this.kept);
        this.kept = grown;
      }
    }
    return row;
  }

  /** Names come and go: those that are gone for good give their rows back. */
  private forgetAllBut(workers: readonly Worker[]): void {
    const stays = workers.flatMap(({ worker }) => {
      const row = this.rows.get(worker);
      return row === undefined ? [] : [{ worker, kept: this.kept.slice(row * SAMPLES, (row + 1) * SAMPLES) }];
    });
    this.rows.clear();
    this.kept.fill(UNKNOWN);
    for (const { worker, kept } of stays) this.kept.set(kept, this.rowOf(worker) * SAMPLES);
  }
}

/** Returns the mean and the most of what is known; null where nothing is. */
export function summed(rates: readonly Rate[]): { mean: number; most: number } | null {
  const known = rates.filter((rate) => rate !== null);
  if (known.length === 0) return null;
  return { mean: known.reduce((sum, rate) => sum + rate, 0) / known.length, most: Math.max(...known) };
}
