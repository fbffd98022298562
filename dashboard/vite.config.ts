import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

const own = new URL('src/lib/browser.ts', import.meta.url).pathname;

// Unhashed names, one chunk for the libraries: the built page is committed, and compared byte by byte.
export default defineConfig({
  plugins: [svelte()],
  base: '/',
  resolve: {
    alias: [
      { find: /^(ws|abort-controller|worker-timers)$/, replacement: own },
      { find: /^buffer$/, replacement: 'buffer/index.js' },
      { find: /^events$/, replacement: 'events/events.js' },
    ],
  },
  build: {
    outDir: '../cloud_dispatcher/dashboard/static',
    emptyOutDir: true,
    target: 'es2022',
    modulePreload: false,
    assetsInlineLimit: 0,
    rolldownOptions: {
      output: {
        entryFileNames: 'assets/app.js',
        chunkFileNames: 'assets/[name].js',
        assetFileNames: 'assets/[name][extname]',
        codeSplitting: { groups: [{ name: 'vendor', test: /node_modules/ }] },
      },
    },
  },
  server: {
    proxy: {
      '/mqtt': { target: 'ws://127.0.0.1:8600', ws: true },
      '/page': 'http://127.0.0.1:8600',
      '/v1': 'http://127.0.0.1:8600',
    },
  },
  test: { environment: 'happy-dom' },
});
