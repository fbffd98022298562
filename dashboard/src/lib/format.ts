// Numbers, spans and moments for people. All figures are tabular, so nothing jumps.

const count = new Intl.NumberFormat('en');

export function whole(value: number | null | undefined): string {
  return value == null ? '–' : count.format(Math.round(value));
}

export function fixed(value: number | null | undefined, digits = 1): string {
  return value == null || !Number.isFinite(value) ? '–' : value.toFixed(digits);
}

export function percent(share: number | null | undefined): string {
  return share == null || !Number.isFinite(share) ? '–' : `${Math.round(share * 100)} %`;
}

/** A span: 840 ms, 2.4 s, 3 min, 5 h. */
export function took(ms: number | null | undefined): string {
  if (ms == null || !Number.isFinite(ms)) return '–';
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 86_400_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} d`;
}

export function usd(value: number | null | undefined): string {
  if (value == null) return '–';
  if (value === 0) return '$0';
  return value < 0.01 ? `$${value.toPrecision(2)}` : `$${value.toFixed(2)}`;
}

export function clock(at_ms: number | null | undefined): string {
  if (at_ms == null) return '–';
  const at = new Date(at_ms);
  const time = at.toLocaleTimeString('en-GB');
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString('en-CA')} ${time}`;
}
