import 'uplot/dist/uPlot.min.css';
import './app.css';

import { mount } from 'svelte';

import App from './App.svelte';
import { fleet } from './lib/fleet.svelte';
import { look } from './lib/look.svelte';

look.apply();
const target = document.getElementById('app');
if (target) mount(App, { target });
void fleet.open();
