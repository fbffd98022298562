// A line of a few minutes in a table's cell: one canvas, no other node.
import { look } from './look.svelte';
import type { Rate } from './rates';

const WASH = '2e';

/** Draws rates, oldest first, as a share of the most; what is not known stays empty. */
export function drawn(canvas: HTMLCanvasElement, rates: readonly Rate[], most: number): void {
  const { clientWidth: width, clientHeight: height } = canvas;
  const brush = canvas.getContext('2d');
  if (!brush || width === 0) return;
  const scale = Math.min(devicePixelRatio || 1, 2);
  canvas.width = Math.round(width * scale); // empties it, too
  canvas.height = Math.round(height * scale);
  brush.scale(scale, scale);
  brush.lineWidth = 1.25;
  brush.lineJoin = 'round';
  brush.strokeStyle = inkOf(look.theme);
  brush.fillStyle = `${brush.strokeStyle}${WASH}`;
  const step = width / rates.length;
  const floor = height - 1;
  let known: [number, number][] = [];
  const put = (): void => {
    const [first, last] = [known[0], known.at(-1)];
    if (!first || !last) return;
    const line = new Path2D();
    for (const [x, y] of known) line.lineTo(x, y);
    brush.stroke(line);
    line.lineTo(last[0], height);
    line.lineTo(first[0], height);
    brush.fill(line);
    known = [];
  };
  rates.forEach((rate, at) => {
    if (rate === null) return put();
    const y = floor - (rate / most) * (height - 3);
    if (known.length === 0) known.push([at * step, y]);
    known.push([(at + 1) * step, y]);
  });
  put();
}

const inks = new Map<string, string>();

/** The accent of the page's colours, asked for once: to ask makes the browser lay out the page. */
function inkOf(theme: string): string {
  let ink = inks.get(theme);
  if (!ink) inks.set(theme, (ink = getComputedStyle(document.documentElement).getPropertyValue('--accent').trim()));
  return ink;
}
