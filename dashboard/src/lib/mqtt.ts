// MQTT.js over a WebSocket and nothing else: from its modules, not from the bundle that it ships,
// which brings WeChat, Alipay, SOCKS, timers in a worker, and its polyfills twice: 32 kB more.
import './process';
import client from 'mqtt/lib/client';
import { browserStreamBuilder } from 'mqtt/lib/connect/ws';
import type { IClientOptions, MqttClient } from 'mqtt';

// A CommonJS module: what it exports as `default` is a field of what is imported.
const Client = (client as unknown as { default: typeof client }).default;

/** Connects to a `ws` or `wss` address; reconnects by itself, as `mqtt.connect` would. */
export function connect(url: string, options: IClientOptions): MqttClient {
  const { protocol, hostname, port, pathname, search } = new URL(url);
  const isSecure = protocol === 'wss:';
  const all: IClientOptions = {
    ...options,
    protocol: isSecure ? 'wss' : 'ws',
    hostname,
    port: Number(port) || (isSecure ? 443 : 80),
    path: pathname + search,
  };
  return new Client((made) => browserStreamBuilder(made, all), all);
}
