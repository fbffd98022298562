// Things that are done as soon as they are asked for, but not over and over.

/** Does something at once, and what is asked for within the next span together at its end. */
export class Pace {
  private timer: ReturnType<typeof setTimeout> | null = null;
  private freeAt = 0;

  constructor(private readonly spanMs: number, private readonly act: () => void) {}

  ask(): void {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.rest();
      this.act();
    }, Math.max(0, this.freeAt - performance.now()));
  }

  /** Lets a span pass before anything is done. */
  rest(): void {
    this.freeAt = performance.now() + this.spanMs;
  }
}
