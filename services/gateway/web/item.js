// The player: sign in, ask for the right to play, play.
import {call, forget, isSignedIn, signIn, signOut} from './api.js';

const id = decodeURIComponent(location.pathname.split('/').pop());
const $ = (name) => document.getElementById(name);
let hls = null;

function say(text, isError) {
  $('message').textContent = text;
  $('message').className = isError ? 'error' : '';
}

function show(signedIn) {
  $('login').hidden = signedIn;
  $('player').hidden = !signedIn;
  $('logout').hidden = !signedIn;
}

function levelName(level) {
  const rate = `${Math.round(level.bitrate / 1000)} kbit/s`;
  return level.height ? `${level.height}p, ${rate}` : rate;
}

function listLevels(levels) {
  const options = [new Option('automatic', '-1')];
  levels.forEach((level, i) => options.push(new Option(levelName(level), String(i))));
  $('level').replaceChildren(...options);
}

// One sound needs no menu.
function listLanguages(tracks) {
  const options = tracks.map((track, i) => new Option(track.name || track.lang, String(i)));
  $('language').replaceChildren(...options);
  $('languages').hidden = tracks.length < 2;
  if (hls && hls.audioTrack >= 0) $('language').value = String(hls.audioTrack);
}

function playWithHls(url) {
  const Hls = window.Hls;
  hls = new Hls({maxBufferLength: 30});
  hls.on(Hls.Events.MANIFEST_PARSED, (_, data) => {
    listLevels(data.levels);
    $('video').play().catch(() => say('Press play.'));
  });
  hls.on(Hls.Events.AUDIO_TRACKS_UPDATED, (_, data) => listLanguages(data.audioTracks));
  hls.on(Hls.Events.AUDIO_TRACK_SWITCHED, (_, data) => {
    $('language').value = String(data.id);
  });
  hls.on(Hls.Events.ERROR, (_, data) => {
    if (data.fatal) say(`Playing stopped: ${data.details}`, true);
  });
  hls.loadSource(url);
  hls.attachMedia($('video'));
}

function playNatively(url) {
  listLevels([]);
  $('video').src = url;
  $('video').play().catch(() => say('Press play.'));
}

async function play() {
  say('');
  show(true);
  let opened;
  try {
    opened = await call('POST', `/api/v1/items/${encodeURIComponent(id)}/play`, {profile: {neverDirect: true}});
  } catch (e) {
    if (e.status === 401) show(false);
    say(e.status === 403 ? 'This item has not been bought.' : e.message, true);
    return;
  }
  $('title').textContent = opened.title || id;
  document.title = opened.title || 'Cauce';
  if (opened.posterUrl) $('video').poster = opened.posterUrl;
  if (window.Hls && window.Hls.isSupported()) playWithHls(opened.masterUrl);
  else playNatively(opened.masterUrl);
}

async function describe() {
  try {
    const item = await call('GET', `/api/v1/items/${encodeURIComponent(id)}`);
    $('title').textContent = item.title || id;
    $('description').textContent = item.description || '';
  } catch (e) {
    say(e.message, true);
  }
}

$('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  try {
    await signIn(form.get('name'), form.get('password'));
  } catch (e) {
    say(e.message, true);
    return;
  }
  event.target.reset();
  await play();
});
$('logout').addEventListener('click', async () => {
  if (hls) hls.destroy();
  hls = null;
  await signOut();
  forget();
  show(false);
});
$('level').addEventListener('change', (event) => {
  if (hls) hls.currentLevel = Number(event.target.value);
});

$('language').addEventListener('change', (event) => {
  if (hls) hls.audioTrack = Number(event.target.value);
});

if (isSignedIn()) {
  play();
} else {
  show(false);
  describe();
}
