// The link to the broker, through the gateway's `/mqtt`. Everything else sees topics below the root.
import type { MqttClient } from 'mqtt';
import { connect } from './mqtt';

export type Link = 'connecting' | 'online' | 'offline';
type Hearer = (topic: string, payload: Uint8Array) => void;

export class Bus {
  private readonly client: MqttClient;
  private readonly hearers = new Map<string, Set<Hearer>>();

  constructor(url: string, private readonly root: string, told: (link: Link) => void) {
    this.client = connect(url, {
      protocolVersion: 5,
      keepalive: 30,
      reconnectPeriod: 1_000,
      connectTimeout: 10_000,
      resubscribe: true,
      timerVariant: 'native', // the other kind is a blob of script, which the page's policy refuses
    });
    this.client.on('connect', () => told('online'));
    this.client.on('close', () => told('offline'));
    this.client.on('reconnect', () => told('connecting'));
    this.client.on('error', () => told('offline'));
    this.client.on('message', (topic, payload) => {
      const name = topic.slice(root.length + 1);
      for (const [filter, hearers] of this.hearers) {
        if (matches(filter, name)) for (const hearer of hearers) hearer(name, payload);
      }
    });
  }

  /** Hears a filter until the returned function is called. */
  hear(filter: string, hearer: Hearer): () => void {
    let hearers = this.hearers.get(filter);
    if (!hearers) {
      this.hearers.set(filter, (hearers = new Set()));
      this.client.subscribe(`${this.root}/${filter}`, { qos: 0 });
    }
    hearers.add(hearer);
    return () => {
      hearers.delete(hearer);
      if (hearers.size === 0 && this.hearers.delete(filter)) this.client.unsubscribe(`${this.root}/${filter}`);
    };
  }

  say(topic: string, message: unknown): void {
    this.client.publish(`${this.root}/${topic}`, JSON.stringify(message), { qos: 1 });
  }
}

/** Whether a topic filter of MQTT has a topic. */
export function matches(filter: string, topic: string): boolean {
  const wanted = filter.split('/');
  const levels = topic.split('/');
  for (const [at, level] of wanted.entries()) {
    if (level === '#') return true;
    if (level !== '+' && level !== levels[at]) return false;
  }
  return wanted.length === levels.length;
}

const decoder = new TextDecoder();

/** Reads JSON; undefined for what is empty or none. */
export function read<T>(payload: Uint8Array): T | undefined {
  if (payload.length === 0) return undefined;
  try {
    return JSON.parse(decoder.decode(payload)) as T;
  } catch {
    return undefined;
  }
}
