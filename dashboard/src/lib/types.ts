// What the page hears, as `fleet_protocol.messages` defines it. Unknown fields are ignored.

export type Presence = 'online' | 'draining' | 'offline';

export interface Endpoint {
  name: string;
  model: string;
  state: 'closed' | 'open' | 'half_open';
  code?: string;
  ready_in_ms?: number;
  inflight?: number;
}

export interface Load {
  step: number;
  causes: string[];
  refused: number;
  shed: number;
  edge_p50_ms?: number | null;
  success_share?: number | null;
  memory_pct?: number | null;
}

export interface Summary {
  at_ms: number;
  queued: number;
  inflight: number;
  escalated: number;
  workers: Partial<Record<Presence, number>>;
  busy: number;
  hot: number;
  tok_s: number;
  finished: Record<string, number>;
  answered_by: Record<string, number>;
  reasons: Record<string, number>;
  degraded: Record<string, number>;
  jobs_per_s: number;
  latency_ms: { p50: number; p95: number; p99: number };
  cost_usd: number;
  endpoints: Endpoint[];
  load: Load;
}

export interface DispatcherPresence {
  status: 'online' | 'offline';
  epoch: string;
  since_at_ms?: number;
  software?: string;
}

/** A row of `fleet/roster/{shard}`, its columns by name. */
export interface Worker {
  worker: string;
  status: Presence;
  weight: number;
  compute: number;
  bandwidth: number;
  inflight: number;
  slots: number;
  seen_at_ms: number | null;
  model_version?: string | null;
  left_alone: boolean;
  board: string | null;
  software: string | null;
  model: string | null;
  measured_tok_s: number | null;
  tok_s: number | null;
  temp_c: number | null;
  throttled: boolean | null;
  cpu_pct: number | null;
  mem_pct: number | null;
}

export interface RosterShard {
  at_ms: number;
  shard: number;
  columns: string[];
  rows: unknown[][];
}

export interface WorkerState {
  ts: number;
  status: 'idle' | 'busy' | 'hot';
  cpu_pct: number;
  mem_pct: number;
  inflight: number;
  tok_s?: number;
  temp_c?: number | null;
  throttled?: boolean | null;
}

export interface WorkerInfo {
  software?: string;
  board?: string;
  cpu?: string;
  cores?: number;
  memory_mb?: number;
  slots?: number;
  models?: { name: string; version: string; context_tokens: number; variant?: string }[];
  benchmark?: { prefill_tok_s: number; decode_tok_s: number; bandwidth_mbps?: number | null } | null;
  labels?: Record<string, string> | string[];
}

export interface Alert {
  id: string;
  severity: 'info' | 'warning' | 'critical';
  title: string;
  since_at_ms: number;
  detail?: string;
  acked_by?: string | null;
  acked_at_ms?: number | null;
  resolved_at_ms?: number | null;
}

export interface JobResult {
  status: string;
  text?: string;
  code?: string;
  message?: string;
  reason?: string | null;
  detail?: string;
  answered_by?: string | null;
  worker?: string | null;
  model?: string;
  degraded?: boolean;
  confidence?: number | null;
  cost_usd?: number;
  usage?: { prompt_tokens?: number; completion_tokens?: number; cached_tokens?: number };
  timing_ms?: { queued?: number | null; first_token?: number | null; total?: number | null };
}

export interface Job {
  job: string;
  device: string;
  id: string;
  status: string;
  priority: number;
  prompt_chars: number;
  received_at_ms: number;
  finished_at_ms?: number | null;
  deadline_at_ms?: number | null;
  attempts?: number;
  worker?: string | null;
  dead?: boolean;
  parts?: number;
  part_of?: string | null;
  assigned_at_ms?: number | null;
  past?: PastAttempt[];
  result?: JobResult | null;
}

/** An attempt that ended without a result; no worker: a call of the cloud. */
export interface PastAttempt {
  attempt: number;
  ended_at_ms: number;
  code: string;
  worker?: string | null;
  began_at_ms?: number | null;
}

export interface AdminReply {
  req: string;
  ok: boolean;
  code?: string;
  message?: string;
  jobs?: Job[];
  alerts?: Alert[];
  members?: number;
  go_on?: string | null;
  budgets?: { tenant: string; spent_usd: number; daily_usd?: number | null }[];
}

/** What `/page/session` says of whoever has the page open. */
export interface Session {
  login: boolean;
  version: string;
  user: string | null;
  role: 'viewer' | 'operator' | 'admin';
  may: string[];
  csrf: string;
  root: string;
  topics: { asks: string; hears: string };
  has_cloud: boolean;
  models: string[];
}

/** What it says of whoever must log in. */
export interface Door {
  login: true;
  version: string;
  role?: undefined;
}

export interface History {
  columns: string[];
  rows: number[][];
}
