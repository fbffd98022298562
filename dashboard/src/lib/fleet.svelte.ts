// What the page knows of the fleet. Hot data stays in plain maps; views get the table of workers at
// most five times a second, and nothing while the page is hidden.
import { Bus, read, type Link } from './bus';
import { Pace } from './pace';
import { Rates } from './rates';
import { merged, rowsOf, type Told } from './roster';
import type { AdminReply, Alert, DispatcherPresence, Door, History, RosterShard, Session, Summary, Worker } from './types';

const PAINT_MS = 200;
const TICK_MS = 1_000;
const SAMPLE_MS = 5_000;
const KEPT_SAMPLES = 2_200;

/** A sample of the charts: the same columns as `/page/history`. */
export type Sample = number[];

class Fleet {
  session = $state.raw<Session | null>(null);
  door = $state.raw<Door | null>(null);
  trouble = $state.raw<string>('');
  link = $state.raw<Link>('connecting');
  isGatewayGone = $state.raw<boolean>(false);
  dispatcher = $state.raw<DispatcherPresence | null>(null);
  summary = $state.raw<Summary | null>(null);
  workers = $state.raw<Worker[]>([]);
  /** Whether the table of workers was heard: before, a worker that is not in it may well be there. */
  isTableHeard = $state.raw<boolean>(false);
  alerts = $state.raw<Alert[]>([]);
  columns = $state.raw<string[]>([]);
  samples = $state.raw<Sample[]>([]);
  heardAt = $state.raw<number>(0);
  now = $state.raw<number>(Date.now());
  /** When `rates` had their last sample. */
  sampledAt = $state.raw<number>(0);
  readonly rates = new Rates();

  bus: Bus | null = null;
  private wantsWorkers = false;
  private leaveWorkers: (() => void) | null = null;
  private readonly painting = new Pace(PAINT_MS, () => this.paint());
  private readonly shards = new Map<string, Told>();
  private readonly firing = new Map<string, Alert>();
  private newest: Summary | null = null;

  /** Opens the page: who it is, what was before, and what happens from now on. */
  async open(): Promise<void> {
    try {
      const told = await fetched<Session | Door>('/page/session');
      if (!told.role) {
        this.door = told;
        return;
      }
      this.session = told;
      const history = await fetched<History>('/page/history');
      this.columns = history.columns;
      this.samples = history.rows;
    } catch (error) {
      this.trouble = String(error instanceof Error ? error.message : error);
      setTimeout(() => void this.open(), 3_000);
      return;
    }
    this.trouble = '';
    const bus = new Bus(`${location.origin.replace(/^http/, 'ws')}/mqtt`, this.session.root, (link) => this.onLink(link));
    this.bus = bus;
    bus.hear('fleet/summary', (_, payload) => {
      const summary = read<Summary>(payload);
      if (summary) this.take(summary);
    });
    bus.hear('fleet/dispatcher', (_, payload) => (this.dispatcher = read<DispatcherPresence>(payload) ?? null));
    bus.hear('fleet/alerts/+', (topic, payload) => this.alert(topic.split('/')[2] ?? '', read<Alert>(payload)));
    this.follow();
    setInterval(() => this.tick(), TICK_MS);
    document.addEventListener('visibilitychange', () => {
      this.follow();
      this.tick();
    });
  }

  /** Hears the table of workers from now on: views that show none do without most of what there is to hear. */
  hearWorkers(): void {
    this.wantsWorkers = true;
    this.follow();
  }

  private follow(): void {
    if (document.hidden) {
      this.leaveWorkers?.();
      this.leaveWorkers = null;
    } else if (this.wantsWorkers && this.bus && !this.leaveWorkers) {
      this.painting.rest(); // all shards are retained, come at once and are shown together
      this.leaveWorkers = this.bus.hear('fleet/roster/+', (topic, payload) => {
        const shard = read<RosterShard>(payload);
        if (!shard) return;
        this.shards.set(topic, { at_ms: shard.at_ms, rows: rowsOf(shard) });
        this.painting.ask();
      });
    }
  }

  private onLink(link: Link): void {
    this.link = link;
    if (link === 'online') this.isGatewayGone = false;
    if (link === 'offline') void this.lookWhatIsGone();
  }

  /** A bridge that closes may be the end of the login: then the door is shown instead. Or the gateway is gone itself. */
  private async lookWhatIsGone(): Promise<void> {
    const told = await fetched<Session | Door>('/page/session').catch(() => null);
    this.isGatewayGone = told === null && this.link !== 'online';
    if (told && !told.role) location.reload();
  }

  /** Whether the role of whoever is here may do something: `fleet_protocol.roles`. */
  may(deed: string): boolean {
    return this.session?.may.includes(deed) ?? false;
  }

  private take(summary: Summary): void {
    this.newest = summary;
    this.heardAt = Date.now();
    if (!document.hidden) this.summary = summary;
    const last = this.samples.at(-1);
    if (last && summary.at_ms - (last[0] ?? 0) < SAMPLE_MS) return;
    const named: Record<string, number | undefined> = {
      ...summary.answered_by, at_ms: summary.at_ms, jobs_per_s: summary.jobs_per_s, p50_ms: summary.latency_ms.p50,
      p95_ms: summary.latency_ms.p95, queued: summary.queued, inflight: summary.inflight, escalated: summary.escalated,
      online: summary.workers.online, cost_usd: summary.cost_usd,
    };
    const sample = this.columns.map((name) => named[name] ?? 0);
    this.samples = [...this.samples.slice(-KEPT_SAMPLES), sample];
  }

  private alert(id: string, alert: Alert | undefined): void {
    // By its topic: several dispatchers have alerts of the same name.
    if (alert) this.firing.set(id, { ...alert, id });
    else this.firing.delete(id);
    this.alerts = [...this.firing.values()].sort((a, b) => b.since_at_ms - a.since_at_ms);
  }

  private tick(): void {
    if (document.hidden) return;
    this.now = Date.now();
    this.summary = this.newest;
    if (this.link === 'online' && this.rates.sample(this.workers, this.now)) this.sampledAt = this.now;
  }

  private paint(): void {
    if (document.hidden) return;
    this.workers = merged(this.shards.values());
    this.isTableHeard = true;
  }

  /** Asks the dispatcher as an operator does. */
  ask(request: Record<string, unknown>): Promise<AdminReply> {
    const { bus, session } = this;
    if (!bus || !session) return Promise.reject(new Error('offline'));
    const req = crypto.randomUUID().slice(0, 13);
    const { asks, hears } = session.topics;
    const heard: AdminReply[] = [];
    return new Promise((resolve, reject) => {
      const stop = bus.hear(hears, (_, payload) => {
        const reply = read<AdminReply>(payload);
        if (reply?.req !== req) return;
        heard.push(reply);
        if (heard.length < (reply.members ?? 0)) return;
        clearTimeout(late);
        stop();
        // Several dispatchers answer, each for its own: where one could, the others need not.
        resolve({ ...(heard.find((one) => one.ok) ?? reply), alerts: heard.flatMap((one) => one.alerts ?? []) });
      });
      const late = setTimeout(() => {
        stop();
        reject(new Error('timeout'));
      }, 10_000);
      bus.say(asks, { v: 1, req, ...request });
    });
  }
}

async function fetched<T>(path: string): Promise<T> {
  const response = await fetch(path, { headers: { accept: 'application/json' } });
  if (!response.ok) throw new Error(`${response.status}`);
  return (await response.json()) as T;
}

/** Logs in; returns the code and the text of what went wrong, or null. */
export async function logIn(name: string, password: string): Promise<{ code: string; wait_s: number } | null> {
  const response = await fetch('/page/login', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ name, password }),
  });
  if (response.ok) return null;
  const body = (await response.json().catch(() => ({}))) as { error?: { code?: string } };
  return { code: body.error?.code ?? String(response.status), wait_s: Number(response.headers.get('retry-after') ?? 0) };
}

export async function logOut(): Promise<void> {
  await fetch('/page/logout', { method: 'POST', headers: { 'x-csrf-token': fleet.session?.csrf ?? '' } });
  location.reload();
}

export const fleet = new Fleet();
