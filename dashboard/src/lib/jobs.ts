// Which jobs the page asks for: filters and position, as they stand in its address.

export const FILTERS = ['status', 'route', 'text', 'worker', 'device', 'tenant', 'code', 'since', 'until'] as const;
export type Filter = (typeof FILTERS)[number];
export const PAGE = 30; // with texts the page has 950 nodes then

export type Request = Record<string, unknown>;

/** Where in the list a page is: from the newest on, or next to a job. */
export interface Place {
  before: string;
  after: string;
}

const ID = /^[\w-]{1,36}$/;

/** Returns the filters and the place that an address names; what is not there is empty. */
export function chosenIn(query: URLSearchParams): Record<Filter | keyof Place, string> {
  const names = [...FILTERS, 'before', 'after'] as const;
  return Object.fromEntries(names.map((name) => [name, (query.get(name) ?? '').trim()])) as Record<Filter | keyof Place, string>;
}

/** Returns which filters say what can be no such thing; they are told, not left out. */
export function wrongIn(query: URLSearchParams): Filter[] {
  const chosen = chosenIn(query);
  const isWrong: Partial<Record<Filter, (value: string) => boolean>> = {
    worker: (value) => !ID.test(value), device: (value) => !ID.test(value), text: (value) => value.length > 36,
    tenant: (value) => value.length > 64, code: (value) => value.length > 64,
    since: (value) => Number.isNaN(Date.parse(value)), until: (value) => Number.isNaN(Date.parse(value)),
  };
  return FILTERS.filter((name) => chosen[name] && isWrong[name]?.(chosen[name]));
}

/** Returns the request for what an address names, without its place in the list. */
export function requestOf(query: URLSearchParams): Request {
  const { status, route, text, worker, device, tenant, code, since, until } = chosenIn(query);
  const request: Request = {
    op: 'jobs.ls', route, text, worker, device, of_tenant: tenant, code,
    ...(status === 'dead' ? { dead: true } : { status }),
    ...(since && { since_ms: Date.parse(since) }),
    ...(until && { until_ms: Date.parse(until) }),
  };
  return Object.fromEntries(Object.entries(request).filter(([, value]) => value !== ''));
}

const DIGITS = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';
const TIME_DIGITS = 10;

/** Returns when a job was taken in, by its key (a ULID); null for what is none. */
export function atOf(key: string): number | null {
  let at_ms = 0;
  for (const digit of key.slice(0, TIME_DIGITS)) {
    const value = DIGITS.indexOf(digit);
    if (value < 0) return null;
    at_ms = at_ms * DIGITS.length + value;
  }
  return key.length < TIME_DIGITS ? null : at_ms;
}

const two = (value: number): string => String(value).padStart(2, '0');

/** Returns a moment of an address as an input shows it: in the time of whoever reads. */
export function localOf(moment: string): string {
  const at = new Date(moment);
  if (Number.isNaN(at.getTime())) return '';
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}T${two(at.getHours())}:${two(at.getMinutes())}`;
}

/** Returns what an input says as an address keeps it: the same moment for everybody. */
export function momentOf(local: string): string {
  const at = new Date(local);
  return local === '' || Number.isNaN(at.getTime()) ? '' : `${at.toISOString().slice(0, 16)}Z`;
}
