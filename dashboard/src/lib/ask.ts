// A question to the fleet, as any application asks: OpenAI's API with its stream.

export interface Answer {
  text: string;
  isOver: boolean;
  error: string;
  took_ms: number;
  first_ms: number | null;
  replaced: boolean;
  tokens: number | null;
  fleet: { answered_by?: string; worker?: string; reason?: string; degraded?: boolean; cost_usd?: number; confidence?: number; job?: string };
}

interface Chunk {
  choices?: { delta?: { content?: string } }[];
  usage?: { completion_tokens?: number } | null;
  error?: { message?: string; code?: string };
  fleet?: Answer['fleet'] & { starts_over?: boolean };
}

export type Escalate = 'auto' | 'always' | 'never';

/** Asks, and tells the answer as it grows. */
export async function ask(
  question: string,
  { escalate, max_tokens, csrf, signal, told }: { escalate: Escalate; max_tokens: number; csrf: string; signal: AbortSignal; told: (answer: Answer) => void },
): Promise<void> {
  const began = performance.now();
  let answer: Answer = { text: '', isOver: false, error: '', took_ms: 0, first_ms: null, replaced: false, tokens: null, fleet: {} };
  const grow = (change: Partial<Answer>): void => {
    answer = { ...answer, ...change, took_ms: performance.now() - began };
    told(answer);
  };
  try {
    const response = await fetch('/v1/chat/completions', {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(csrf && { 'x-csrf-token': csrf }) },
      body: JSON.stringify({
        model: 'fleet', messages: [{ role: 'user', content: question }], max_tokens, escalate,
        stream: true, stream_options: { include_usage: true }, drafts: true, cache: 'off',
      }),
      signal,
    });
    if (!response.ok || !response.body) {
      const body = (await response.json().catch(() => ({}))) as Chunk;
      grow({ isOver: true, error: body.error?.message ?? `HTTP ${response.status}` });
      return;
    }
    for await (const data of events(response.body)) {
      if (data === '[DONE]') break;
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) grow({ error: chunk.error.message ?? chunk.error.code ?? 'error' });
      const before = chunk.fleet?.starts_over ? { text: '', replaced: answer.text !== '' } : {};
      const piece = chunk.choices?.[0]?.delta?.content ?? '';
      grow({
        ...before,
        text: ('text' in before ? '' : answer.text) + piece,
        first_ms: answer.first_ms ?? (piece ? performance.now() - began : null),
        tokens: chunk.usage?.completion_tokens ?? answer.tokens,
        fleet: { ...answer.fleet, ...chunk.fleet },
      });
    }
    grow({ isOver: true });
  } catch (error) {
    grow({ isOver: true, error: signal.aborted ? '' : String(error instanceof Error ? error.message : error) });
  }
}

/** Cuts server-sent events out of a stream; comments are dropped. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as unknown as TransformStream<Uint8Array, string>).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? '';
    let end: number;
    while ((end = rest.indexOf('\n\n')) >= 0) {
      const event = rest.slice(0, end);
      rest = rest.slice(end + 2);
      const data = event.split('\n').filter((line) => line.startsWith('data: ')).map((line) => line.slice(6)).join('\n');
      if (data) yield data;
    }
    if (done) return;
  }
}
