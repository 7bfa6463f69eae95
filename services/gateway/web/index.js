// The list of published items.
import {call} from './api.js';

const items = document.getElementById('items');
const message = document.getElementById('message');
const more = document.getElementById('more');
let next = '';

function duration(us) {
  const s = Math.round(Number(us || 0) / 1e6);
  return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')}`;
}

function price(p) {
  return p && Number(p.minor) > 0 ? `${(Number(p.minor) / 100).toFixed(2)} ${p.currency}` : 'free';
}

function row(item) {
  const li = document.createElement('li');
  const a = document.createElement('a');
  a.href = `/item/${encodeURIComponent(item.itemId)}`;
  a.textContent = item.title || item.itemId;
  const facts = document.createElement('span');
  facts.textContent = [item.kind, duration(item.durationUs), price(item.price)].filter(Boolean).join(' · ');
  li.append(a, facts);
  return li;
}

async function page() {
  more.disabled = true;
  try {
    const query = next ? `?page.token=${encodeURIComponent(next)}` : '';
    const list = await call('GET', `/api/v1/items${query}`);
    for (const item of list.items || []) items.append(row(item));
    next = list.nextPage || '';
    message.textContent = items.children.length ? '' : 'Nothing has been published yet.';
  } catch (e) {
    message.textContent = `The list cannot be shown: ${e.message}`;
    message.className = 'error';
  }
  more.hidden = !next;
  more.disabled = false;
}

more.addEventListener('click', page);
page();
