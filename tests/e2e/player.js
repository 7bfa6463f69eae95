// Plays an item in headless Chromium as a user would and prints what happened as one JSON object.
// usage: node player.js BASE_URL ITEM_ID USER PASSWORD SCREENSHOT
'use strict';
const fs = require('fs');
const os = require('os');
const path = require('path');
const {chromium} = require('playwright-core');

const [base, item, user, password, screenshot] = process.argv.slice(2);
const flags = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--no-first-run', '--disable-quic', '--autoplay-policy=no-user-gesture-required', '--mute-audio'];

async function main() {
  const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'cauce-chromium-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium', headless: true, args: flags});
  const errors = [];
  try {
    const page = await context.newPage();
    page.on('pageerror', (e) => errors.push(String(e)));
    page.on('console', (m) => m.type() === 'error' && errors.push(m.text()));
    await page.goto(new URL(`/item/${item}`, base).href);
    await page.fill('input[name=name]', user);
    await page.fill('input[name=password]', password);
    await page.click('button[type=submit]');
    // Page.evaluate does not go through eval(), so the page's own content security policy stays in force.
    const reaches = (seconds, seek) => page.evaluate(([at, to]) => new Promise((resolve, reject) => {
      const started = performance.now();
      const look = () => {
        const v = document.querySelector('video');
        if (v && to !== null && v.readyState > 0) { v.currentTime = to; to = null; }
        if (v && to === null && v.currentTime > at && !v.paused && !v.seeking) resolve(v.currentTime);
        else if (performance.now() - started > 60000) reject(new Error(`not at ${at} s within 60 s: ${v && v.currentTime}`));
        else requestAnimationFrame(look);
      };
      look();
    }), [seconds, seek]);
    const first = await reaches(1.5, null);
    await reaches(7, 6.5);
    // The cues of the subtitles that are shown by themselves, when there are any.
    const cues = await page.evaluate(() => new Promise((resolve, reject) => {
      const started = performance.now();
      const look = () => {
        const shown = [...document.querySelector('video').textTracks].filter((t) => t.mode === 'showing');
        const found = shown.flatMap((t) => [...(t.cues || [])].map((c) => [t.language, c.startTime, c.endTime, c.text]));
        if (shown.length === 0 || found.length) resolve(found);
        else if (performance.now() - started > 60000) reject(new Error('no cues within 60 s'));
        else requestAnimationFrame(look);
      };
      look();
    }));
    const state = await page.evaluate(() => {
      const v = document.querySelector('video');
      return {currentTime: v.currentTime, duration: v.duration, width: v.videoWidth, height: v.videoHeight,
        error: v.error && v.error.message,
        levels: [...document.querySelectorAll('#level option')].map((o) => o.textContent),
        languages: [...document.querySelectorAll('#language option')].map((o) => o.textContent)};
    });
    if (screenshot) await page.screenshot({path: screenshot});
    console.log(JSON.stringify({first, cues, ...state, errors}));
  } finally {
    await context.close();
    fs.rmSync(profile, {recursive: true, force: true});
  }
}

main().catch((e) => { console.error(e); process.exit(1); });
