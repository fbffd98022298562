import { expect, test } from 'vitest';

import { JobList } from '../src/lib/joblist.svelte';
import { atOf, chosenIn, localOf, momentOf, requestOf, wrongIn, type Request } from '../src/lib/jobs';
import type { AdminReply, Job } from '../src/lib/types';

const query = (text: string): URLSearchParams => new URLSearchParams(text);

test('an address becomes a request, and what it does not name is not asked for', () => {
  expect(requestOf(query(''))).toEqual({ op: 'jobs.ls' });
  expect(requestOf(query('status=dead&worker=w1&route=cloud&code=too_long&text=lamp&tenant=north&device=d1&before=01J'))).toEqual({
    op: 'jobs.ls', dead: true, worker: 'w1', route: 'cloud', code: 'too_long', text: 'lamp', of_tenant: 'north', device: 'd1',
  });
  expect(requestOf(query('status=ok&since=2026-11-22T20:00Z&until=2026-11-22T21:00Z'))).toEqual({
    op: 'jobs.ls', status: 'ok', since_ms: Date.UTC(2026, 10, 22, 20), until_ms: Date.UTC(2026, 10, 22, 21),
  });
  expect(chosenIn(query('before=01J&status=ok')).before).toBe('01J');
});

test('a filter that can be no such thing is told, not left out', () => {
  expect(wrongIn(query('worker=w+1&device=d%2F2&since=never&text=fine'))).toEqual(['worker', 'device', 'since']);
  expect(wrongIn(query('worker=w-1&since=2026-11-22T20:00Z'))).toEqual([]);
});

test('a key tells when its job was taken in', () => {
  expect(atOf('01ARYZ6S41TSV4RRFFQ69G5FAV')).toBe(1_469_918_176_385);
  expect(atOf('01ARYZ6S41TSV4RRFFQ69G5FAV-3')).toBe(1_469_918_176_385);
  expect([atOf('short'), atOf('not-a-key-at-all')]).toEqual([null, null]);
});

test('a moment is the same for everybody, and is shown in the time of whoever reads', () => {
  const moment = momentOf('2026-11-22T20:30');
  expect(moment).toMatch(/Z$/);
  expect(Date.parse(moment)).toBe(new Date(2026, 10, 22, 20, 30).getTime());
  expect(localOf(moment)).toBe('2026-11-22T20:30');
  expect([momentOf(''), localOf('x')]).toEqual(['', '']);
});

/** A dispatcher with jobs, newest first; each request looks at `looks` of them at most. */
class Kept {
  asked: Request[] = [];
  constructor(public jobs: Job[], private readonly looks = 1_000, private readonly fits = (job: Job) => Boolean(job)) {}

  ask = (request: Request): Promise<AdminReply> => {
    this.asked.push(request);
    const { jobs, before, after, since_ms, limit } = request as { jobs?: string[]; before?: string; after?: string; since_ms?: number; limit: number };
    if (jobs) return Promise.resolve({ req: 'r', ok: true, jobs: this.jobs.filter((job) => jobs.includes(job.job)) });
    const ordered = after ? [...this.jobs].reverse() : this.jobs;
    const span = ordered.filter((job) => (!before || job.job < before) && (!after || job.job > after) && (!since_ms || job.received_at_ms >= since_ms));
    const found: Job[] = [];
    let looked = 0;
    let last: string | null = null;
    for (const job of span) {
      if (looked >= this.looks || found.length >= limit) break;
      looked += 1;
      last = job.job;
      if (this.fits(job)) found.push(job);
    }
    return Promise.resolve({ req: 'r', ok: true, jobs: after ? found.reverse() : found, go_on: looked < span.length ? last : null });
  };
}

const key = (number: number): string => `k${String(number).padStart(4, '0')}`;
const job = (number: number, more: Partial<Job> = {}): Job =>
  ({ job: key(number), id: `job-${number}`, device: 'd', status: 'ok', priority: 5, prompt_chars: 1, received_at_ms: number, result: { status: 'ok' }, ...more });
const many = (count: number): Job[] => Array.from({ length: count }, (_, at) => job(count - 1 - at));
const names = (list: JobList): string[] => list.jobs.map((each) => each.job);

test('pages lead down to the oldest job and up again', async () => {
  const list = new JobList(new Kept(many(7)).ask, 3);
  await list.load({ op: 'jobs.ls' });
  expect([names(list), list.goOn]).toEqual([[key(6), key(5), key(4)], key(4)]);
  await list.load({ op: 'jobs.ls' }, { before: key(1) });
  expect([names(list), list.goOn, list.isCutShort]).toEqual([[key(0)], null, false]);
  await list.load({ op: 'jobs.ls' }, { after: key(0) });
  expect([names(list), list.goOn]).toEqual([[key(3), key(2), key(1)], key(3)]);
});

test('what fits rarely is looked for request by request, then only if somebody wants it', async () => {
  const rare = new Kept(many(1_000), 10, (each) => each.received_at_ms % 400 === 0);
  const list = new JobList(rare.ask, 3);
  await list.load({ op: 'jobs.ls', route: 'offline' });
  expect([rare.asked.length, names(list), list.isCutShort]).toEqual([25, [key(800)], true]);
  await list.further();
  expect([names(list), list.isCutShort]).toEqual([[key(800)], true]);
  for (let times = 0; times < 3; times += 1) await list.further();
  expect([names(list), list.goOn, list.isCutShort]).toEqual([[key(800), key(400), key(0)], null, false]);
});

test('new jobs are counted and move nothing; open ones change in their places', async () => {
  const kept = new Kept([job(2, { status: 'running', result: null }), job(1)]);
  const list = new JobList(kept.ask, 3);
  await list.load({ op: 'jobs.ls', status: 'running' });
  kept.jobs = [job(4), job(3), job(2), job(1)];
  await list.refresh({ isNewest: true });
  expect([names(list), list.jobs[0]?.status, list.fresh]).toEqual([[key(2), key(1)], 'ok', { count: 2, more: false }]);
  expect(kept.asked.at(-2)).toEqual({ op: 'jobs.ls', jobs: [key(2)], limit: 1 });
  await list.refresh({ isNewest: false });
  expect(list.fresh.count).toBe(2);
});

test('an empty page shows the first job by itself', async () => {
  const kept = new Kept([]);
  const list = new JobList(kept.ask, 3);
  await list.load({ op: 'jobs.ls' });
  expect([list.phase, list.jobs]).toEqual(['there', []]);
  kept.jobs = [job(1, { received_at_ms: Date.now() })];
  await list.refresh({ isNewest: true });
  expect(names(list)).toEqual([key(1)]);
});

test('an old answer never takes the place of a later one', async () => {
  const answers: ((reply: AdminReply) => void)[] = [];
  const list = new JobList(() => new Promise((resolve) => answers.push(resolve)), 3);
  const first = list.load({ op: 'jobs.ls', text: 'a' });
  const second = list.load({ op: 'jobs.ls', text: 'ab' });
  answers[1]?.({ req: 'r', ok: true, jobs: [job(2)] });
  await second;
  answers[0]?.({ req: 'r', ok: true, jobs: [job(1)] });
  await first;
  expect(names(list)).toEqual([key(2)]);
});

test('a refusal and silence are told apart, and keep what is shown', async () => {
  const replies: (AdminReply | Error)[] = [
    { req: 'r', ok: true, jobs: [job(1)] }, { req: 'r', ok: false, code: 'not_authorized', message: 'no' }, new Error('timeout'),
  ];
  const list = new JobList(() => { const next = replies.shift(); return next instanceof Error ? Promise.reject(next) : Promise.resolve(next as AdminReply); }, 3);
  await list.load({});
  await list.load({});
  expect([list.phase, list.code, names(list)]).toEqual(['refused', 'not_authorized', [key(1)]]);
  await list.load({});
  expect([list.phase, names(list)]).toEqual(['silent', [key(1)]]);
});
