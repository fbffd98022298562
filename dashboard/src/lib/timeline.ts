// Where a job's time went.
import type { Job } from './types';

export interface Step {
  name: 'waited' | 'first_token' | 'answer' | 'in_cloud_span';
  ms: number;
}

/** Cuts the time from receipt to result (or now) into waiting, reading and writing. */
export function stepsOf(job: Job, now_ms: number): Step[] {
  const timing = job.result?.timing_ms;
  const total = Math.max(0, timing?.total ?? (job.finished_at_ms ?? now_ms) - job.received_at_ms);
  // What no board had did not wait for one: the cloud, the cache or the library answered.
  const unplaced = job.result ? !job.result.answered_by : !job.worker;
  const waited = Math.min(timing?.queued ?? (unplaced ? total : 0), total);
  const first = Math.min(Math.max(timing?.first_token ?? waited, waited), total);
  const isOneSpan = job.result?.answered_by === 'cloud' && timing?.first_token == null;
  const steps: Step[] = [
    { name: 'waited', ms: waited },
    { name: 'first_token', ms: first - waited },
    { name: isOneSpan ? 'in_cloud_span' : 'answer', ms: total - first },
  ];
  return steps.filter((step) => step.ms > 0);
}

/** A moment of a job's life. */
export interface Moment {
  at_ms: number;
  what: 'received' | 'began' | 'ended' | 'first_token' | 'result';
  attempt?: number;
  worker?: string | null;
  code?: string;
  took_ms?: number | null;
}

/** Returns what happened to a job, in order: every attempt with how long it took, and why it ended. */
export function momentsOf(job: Job): Moment[] {
  const moments: Moment[] = [{ at_ms: job.received_at_ms, what: 'received' }];
  const { past = [], assigned_at_ms, result } = job;
  for (const { attempt, worker = null, began_at_ms, ended_at_ms, code } of past) {
    if (began_at_ms != null) moments.push({ at_ms: began_at_ms, what: 'began', attempt, worker });
    moments.push({ at_ms: ended_at_ms, what: 'ended', attempt, worker, code, took_ms: began_at_ms == null ? null : ended_at_ms - began_at_ms });
  }
  const isPast = past.some((over) => over.began_at_ms === assigned_at_ms);
  if (assigned_at_ms != null && !isPast) moments.push({ at_ms: assigned_at_ms, what: 'began', attempt: job.attempts ?? 1, worker: job.worker ?? null });
  const first = result?.timing_ms?.first_token;
  if (first != null) moments.push({ at_ms: job.received_at_ms + first, what: 'first_token' });
  if (job.finished_at_ms != null) moments.push({ at_ms: job.finished_at_ms, what: 'result' });
  return moments.sort((a, b) => a.at_ms - b.at_ms);
}
