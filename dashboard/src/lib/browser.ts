// What browsers have themselves, in place of the packages that MQTT.js brings for it.
export default globalThis.WebSocket; // ws
export const { AbortController, AbortSignal } = globalThis; // abort-controller
export const setInterval = globalThis.setInterval.bind(globalThis); // worker-timers
export const clearInterval = globalThis.clearInterval.bind(globalThis);
