// Where a job's time went.
import type { Job } from './types';

export interface Step {
  name: 'waited' | 'first_token' | 'answer';
  ms: number;
}

/** Cuts the time from receipt to result (or now) into waiting, reading and writing. */
export function stepsOf(job: Job, now_ms: number): Step[] {
  const timing = job.result?.timing_ms;
  const total = Math.max(0, timing?.total ?? (job.finished_at_ms ?? now_ms) - job.received_at_ms);
  const waited = Math.min(timing?.queued ?? (job.result || !job.worker ? total : 0), total);
  const first = Math.min(Math.max(timing?.first_token ?? waited, waited), total);
  const steps: Step[] = [
    { name: 'waited', ms: waited },
    { name: 'first_token', ms: first - waited },
    { name: 'answer', ms: total - first },
  ];
  return steps.filter((step) => step.ms > 0);
}
