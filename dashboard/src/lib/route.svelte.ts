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

  /** Changes the query in place: what is typed is no step back. */
  keep(values: Record<string, string>): void {
    history.replaceState(null, '', this.link(values));
    this.query = new URLSearchParams(location.hash.split('?')[1] ?? '');
  }

  /** Changes the query as a link does: the browser goes back to what was before. */
  go(values: Record<string, string>): void {
    location.hash = this.link(values);
  }

  /** Returns the address of this place with another query. */
  link(values: Record<string, string>): string {
    const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ''));
    return `#/${this.path.map(encodeURIComponent).join('/')}${query.size ? `?${query}` : ''}`;
  }
}

export const route = new Route();
