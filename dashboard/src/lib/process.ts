// Must be there before the first module of MQTT.js is run.
// @ts-expect-error It has no types.
import process from 'process/browser.js';

(globalThis as { process?: unknown }).process ??= process;
