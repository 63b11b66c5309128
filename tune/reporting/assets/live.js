
// Live: the server says when the run has news, and the page takes them in without a reload

function mended(doc, id) {
  const here = document.getElementById(id), there = doc.getElementById(id);
  if (here && there && here.innerHTML !== there.innerHTML) {
    here.innerHTML = there.innerHTML;
    here.className = there.className;
  }
}

async function refresh() {
  const news = await (await fetch("news")).json();
  if (JSON.stringify(news.data.columns) !== JSON.stringify(data.columns)) return location.reload();
  const doc = new DOMParser().parseFromString(news.body, "text/html");
  const names = page => [...page.querySelectorAll("#figures [id^=plot-]")].map(box => box.id).join();
  const same = names(doc) === names(document);
  const plot = data.figures.parallel, brushed = plot ? plot.data[0].dimensions.map(d => d.constraintrange) : [];
  Object.assign(data, news.data);
  if (data.figures.parallel) data.figures.parallel.data[0].dimensions.forEach((d, i) => brushed[i] && (d.constraintrange = brushed[i]));
  ["answer", "steps"].forEach(id => mended(doc, id));
  if (!same) mended(doc, "figures");
  if (window.Plotly) draw();
  if (table) show();
}

const source = new EventSource("events");
let busy = Promise.resolve();
source.onmessage = event => {
  document.body.dataset.news = event.data;
  busy = busy.then(refresh).catch(() => {}); // a server that is gone comes back: EventSource tries again
};
