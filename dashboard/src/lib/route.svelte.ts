// Where in the page we are: `#/workers/w1?q=pi`, so that everything can be linked to.

class Route {
  path = $state.raw<string[]>([]);
  query = $state.raw<URLSearchParams>(new URLSearchParams());

  constructor() {
    this.read();
    addEventListener('hashchange', () => this.read());
  }

  private read(): void {
    const [path = '', query = ''] = location.hash.replace(/^#\/?/, '').split('?');
    this.path = path.split('/').filter(Boolean).map(decodeURIComponent);
    this.query = new URLSearchParams(query);
  }

  /** Changes the query in place: a filter is no step back. */
  keep(values: Record<string, string>): void {
    const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ''));
    const tail = query.size ? `?${query}` : '';
    history.replaceState(null, '', `#/${this.path.map(encodeURIComponent).join('/')}${tail}`);
    this.query = query;
  }
}

export const route = new Route();
