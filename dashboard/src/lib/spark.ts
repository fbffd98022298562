// A line of a few minutes in a table's cell, as the data of an SVG path. A canvas in each row cost a
// browser half as much again as all else while ten thousand rows were scrolled.
import type { Rate } from './rates';

/**
 * Draws rates, oldest first, in a box that is as wide as there are rates and 1 high, the most of them at its
 * top. Each stretch of what is known stands on the floor; what is not known stays empty.
 */
export function lineOf(rates: readonly Rate[], most: number): string {
  let data = '';
  let isKnown = false;
  rates.forEach((rate, at) => {
    if (rate === null) {
      if (isKnown) data += 'V1';
      isKnown = false;
      return;
    }
    const y = Number((1 - rate / Math.max(most, 1)).toFixed(2));
    data += isKnown ? `L${at + 1} ${y}` : `M${at} 1V${y}H${at + 1}`;
    isKnown = true;
  });
  return isKnown ? `${data}V1` : data;
}
