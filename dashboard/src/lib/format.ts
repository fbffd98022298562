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

const small = new Intl.NumberFormat('en', { maximumSignificantDigits: 2 });
const money = new Intl.NumberFormat('en', { minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** An amount with two digits that say something: $1,234.50, $0.0021, $0.00000096. */
export function usd(value: number | null | undefined): string {
  if (value == null) return '–';
  if (value === 0) return '$0';
  return `$${(value < 0.01 ? small : money).format(value)}`;
}

/** An amount where there is little room: what is less than a hundredth of a cent is not told apart. */
export function usdShort(value: number | null | undefined): string {
  if (value == null || value === 0 || value >= 0.01) return usd(value);
  return value < 0.0001 ? '< $0.0001' : `$${value.toFixed(4)}`;
}

/** How long ago something was heard: whole seconds, or the figure would never rest. */
export function ago(ms: number | null | undefined): string {
  return ms != null && ms < 60_000 ? `${Math.max(0, Math.floor(ms / 1_000))} s` : took(ms);
}

/** A size of memory. */
export function memory(mb: number): string {
  return mb < 1_024 ? `${whole(mb)} MB` : `${fixed(mb / 1_024)} GB`;
}

export function clock(at_ms: number | null | undefined): string {
  if (at_ms == null) return '–';
  const at = new Date(at_ms);
  const time = at.toLocaleTimeString('en-GB');
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString('en-CA')} ${time}`;
}
