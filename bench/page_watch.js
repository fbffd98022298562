// Runs in the page before its own code: notes tasks that block it, and what passes until a figure that
// the dispatcher told, and that the page heard, is painted. `window.seen` has it, in milliseconds.
(() => {
  const TEMPERATURE = 5; // the cell of a row of workers that shows it
  const seen = { tasks: [], lags: [], paints: [], unseen: 0 };
  window.seen = seen;
  new PerformanceObserver((list) => {
    for (const task of list.getEntries()) seen.tasks.push(task.duration);
  }).observe({ type: 'longtask' });

  let summary = null; // the last one, while nothing of it is on the screen
  const known = new Map(); // by shard: what each of its workers shows
  const waiting = new Map(); // by shard: what was told last, while no row in view shows it
  const parse = JSON.parse;
  JSON.parse = (text, ...more) => {
    const told = parse(text, ...more);
    if (told?.latency_ms && told.workers) hearSummary(told);
    else if (told?.columns && 'shard' in told) hearShard(told);
    return told;
  };

  function hearSummary({ at_ms }) {
    if (summary && document.querySelector('.tile')) seen.unseen += 1; // none of its figures differed
    summary = { at_ms, heard: Date.now() };
  }

  /** Waits for the figures that differ from the shard's last ones, if a row in view has one of them. */
  function hearShard({ at_ms, shard, columns, rows }) {
    const [name, warm] = [columns.indexOf('worker'), columns.indexOf('temp_c')];
    const now = new Map(rows.map((row) => [row[name], `${row[warm]?.toFixed(0)} °C`]));
    const before = known.get(shard);
    known.set(shard, now);
    if (waiting.has(shard)) note(waiting.get(shard)); // in vain, until the next one
    waiting.delete(shard);
    if (!before) return;
    const told = new Map([...now].filter(([worker, text]) => before.get(worker) !== text));
    if (inView().some(([worker]) => told.has(worker))) waiting.set(shard, { at_ms, heard: Date.now(), told });
    else seen.unseen += 1;
  }

  function inView() {
    const rows = [...document.querySelectorAll('.body [role=row]')];
    return rows.map(({ children }) => [children[0].textContent, children[TEMPERATURE].textContent]);
  }

  function lookAtRows() {
    if (waiting.size === 0) return;
    const rows = inView();
    for (const [shard, one] of waiting) {
      if (!rows.some(([worker, text]) => one.told.get(worker) === text)) continue;
      waiting.delete(shard);
      setTimeout(() => note(one)); // after the frame
    }
  }

  function note({ at_ms, heard }) {
    seen.lags.push(Date.now() - at_ms);
    seen.paints.push(Date.now() - heard);
  }

  new MutationObserver((changes) => {
    if (!summary) return;
    const isTile = ({ target }) => (target.nodeType === 1 ? target : target.parentElement)?.closest('.tile');
    if (!changes.some(isTile)) return;
    const shown = summary;
    summary = null;
    requestAnimationFrame(() => setTimeout(() => note(shown)));
  }).observe(document, { subtree: true, childList: true, characterData: true });

  const look = () => {
    lookAtRows();
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);

  /** Forgets what was seen. */
  seen.begin = () => {
    Object.assign(seen, { tasks: [], lags: [], paints: [], unseen: 0 });
    summary = null;
    waiting.clear();
  };

  /** Counts elements, as every audit of pages does, then all nodes, texts and comments among them. */
  seen.nodes = () => {
    const all = document.createNodeIterator(document);
    let nodes = 0;
    while (all.nextNode()) nodes += 1;
    return [document.querySelectorAll('*').length, nodes];
  };

  /** Types into the search; returns what passes until another number of rows is told. */
  seen.search = async (words) => {
    const field = document.querySelector('[data-testid=search]');
    const shown = document.querySelector('[data-testid=shown]');
    const [before, begun] = [shown.innerText, performance.now()];
    field.value = words;
    field.dispatchEvent(new Event('input', { bubbles: true }));
    while (shown.innerText === before && performance.now() - begun < 5_000) await new Promise(requestAnimationFrame);
    return performance.now() - begun;
  };
})();
