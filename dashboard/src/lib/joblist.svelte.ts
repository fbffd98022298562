// A page of jobs that stands still: what changes on it changes in its place, and what is new is counted.
import { PAGE, type Request } from './jobs';
import type { AdminReply, Job } from './types';

/** So many requests at most before somebody has to say that it is worth looking further. */
const STEPS = 25;
const MOST_NEW = 100;
/** Jobs of so long before an empty page was looked for may still become what it asks for. */
const BEFORE_MS = 600_000;
/** So many times the page does not ask for new jobs after the dispatcher had to look at very many. */
const RESTS = 9;

export type Phase = 'loading' | 'looking' | 'there' | 'refused' | 'silent';
type Ask = (request: Request) => Promise<AdminReply>;

export class JobList {
  jobs = $state.raw<readonly Job[]>([]);
  phase = $state.raw<Phase>('loading');
  /** Where older jobs begin, or newer ones where the page was looked for upwards; null: there are none. */
  goOn = $state.raw<string | null>(null);
  /** Jobs that came since, and whether they are more than that. */
  fresh = $state.raw<{ count: number; more: boolean }>({ count: 0, more: false });
  code = $state.raw('');
  message = $state.raw('');
  private request: Request = {};
  private upwards = false;
  private turn = 0;
  private rests = 0;
  private loadedAt = 0;

  constructor(private readonly ask: Ask, private readonly size = PAGE) {}

  /** Shows a page: the newest, those before a job or, upwards, those next to one. */
  async load(request: Request, place: { before?: string; after?: string } = {}): Promise<void> {
    this.request = request;
    this.upwards = Boolean(place.after) && !place.before;
    this.fresh = { count: 0, more: false };
    this.phase = 'loading';
    this.loadedAt = Date.now();
    await this.look(place.before || place.after || null, []);
  }

  /** Goes on where the looking stopped though the page is not full. */
  async further(): Promise<void> {
    await this.look(this.goOn, this.jobs);
  }

  /** Stops looking; what was found stays. */
  stop(): void {
    this.turn += 1;
    if (this.phase === 'looking') this.phase = 'there';
  }

  private async look(from: string | null, found: readonly Job[]): Promise<void> {
    const turn = ++this.turn;
    let at = from;
    for (let step = 0; step < STEPS; step += 1) {
      const reply = await this.ask({
        ...this.request, limit: this.size - found.length, ...(at && { [this.upwards ? 'after' : 'before']: at }),
      }).catch(() => null);
      if (turn !== this.turn) return;
      if (!reply?.ok) {
        this.phase = reply ? 'refused' : 'silent';
        this.code = reply?.code ?? '';
        this.message = reply?.message ?? '';
        return;
      }
      const jobs = reply.jobs ?? [];
      found = this.upwards ? [...jobs, ...found] : [...found, ...jobs];
      this.jobs = found;
      this.goOn = at = reply.go_on ?? null;
      if (at === null || found.length >= this.size) break;
      this.phase = 'looking';
    }
    this.phase = 'there';
  }

  /** Whether there may be more that nobody looked at yet, on this very page. */
  get isCutShort(): boolean {
    return this.phase === 'there' && this.goOn !== null && this.jobs.length < this.size;
  }

  /** Lets jobs that are shown be as they are now, and counts those that came on top of the newest page. */
  async refresh({ isNewest }: { isNewest: boolean }): Promise<void> {
    if (this.phase !== 'there') return;
    const turn = this.turn;
    const open = this.jobs.filter((job) => !job.result).map((job) => job.job);
    const [changed, newer] = await Promise.all([
      open.length ? this.ask({ op: 'jobs.ls', jobs: open, limit: open.length }).catch(() => null) : null,
      isNewest ? this.newer() : null,
    ]);
    if (turn !== this.turn) return;
    if (changed?.jobs?.length) {
      const now = new Map(changed.jobs.map((job) => [job.job, job]));
      this.jobs = this.jobs.map((job) => now.get(job.job) ?? job);
    }
    const count = newer?.ok ? (newer.jobs?.length ?? 0) : this.fresh.count;
    if (count && this.jobs.length === 0) await this.look(null, []); // nothing is shown that could jump
    else if (newer?.ok) this.fresh = { count, more: Boolean(newer.go_on) };
  }

  private async newer(): Promise<AdminReply | null> {
    if (this.rests > 0) {
      this.rests -= 1;
      return null;
    }
    const first = this.jobs[0];
    const since_ms = Math.max(Number(this.request['since_ms'] ?? 0), this.loadedAt - BEFORE_MS);
    const from = first ? { after: first.job } : { since_ms };
    const reply = await this.ask({ ...this.request, ...from, limit: MOST_NEW }).catch(() => null);
    if (reply?.go_on && (reply.jobs?.length ?? 0) < MOST_NEW) this.rests = RESTS;
    return reply;
  }
}
