"""The style sheet of index.html: one for light and dark, for wide and narrow, with no font or image from elsewhere."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--card:#f6f7f9;--ink:#1c2128;--soft:#57606a;--rule:#d5dae1;--grid:#e3e7ec;
--arm:#0a5fb4;--random:#6b7280;--full:#8a5a00;--better:#12702f;--worse:#b3261e;--equivalent:#6639ba;--undecided:#7d5700;
--signal:#0a5fb4;--exploration:#d9822b;--bar:#5f8fc2;--band:#e9e3f6;--mark:#b3261e;--onmark:#fff;--shade:#0003}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--card:#171c23;--ink:#e6eaf0;--soft:#a2adba;--rule:#323b46;
--grid:#262e38;--arm:#6db3f8;--random:#a2adba;--full:#e0b254;--better:#52c574;--worse:#ff8f85;--equivalent:#c3a6ff;
--undecided:#e5b84b;--signal:#6db3f8;--exploration:#ffab5e;--bar:#4d7fb3;--band:#2a2440;--mark:#ff8f85;--onmark:#0f1318;--shade:#000a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:1140px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.05rem;margin:0;color:var(--soft);font-weight:600;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.4rem 0 .5rem;line-height:1.3}
h3{font-size:1rem;margin:0 0 .4rem;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:76ch;overflow-wrap:anywhere}
.lead{font-size:1.65rem;line-height:1.3;font-weight:650;margin:.3rem 0 .8rem;max-width:52ch}
.facts,.caption{color:var(--soft);font-size:.9rem}
.slice{border-left:4px solid var(--undecided);background:var(--card);padding:.6rem .9rem;margin:1rem 0}
ul{margin:.5rem 0;padding-left:1.2rem;max-width:80ch}li{margin:.25rem 0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px;margin:.8rem 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 14px 10px;min-width:0}
.cards>.card:only-child{max-width:540px}
svg{display:block;width:100%;height:auto}
.key.lines{display:block}.key.lines li{align-items:flex-start;margin:.2rem 0}
.scroll{overflow-x:auto;background:linear-gradient(90deg,var(--page) 40%,transparent) 0/40px 100% no-repeat local,
linear-gradient(270deg,var(--page) 40%,transparent) 100%/40px 100% no-repeat local,
linear-gradient(90deg,var(--shade),transparent) 0/14px 100% no-repeat scroll,
linear-gradient(270deg,var(--shade),transparent) 100%/14px 100% no-repeat scroll;
margin:.6rem 0;border:1px solid var(--rule);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .75rem;text-align:right;white-space:nowrap;border-top:1px solid var(--rule)}
thead th{border-top:0;color:var(--soft);font-weight:600;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:min(17rem,40vw);max-width:24rem;overflow-wrap:anywhere}
td.words,th.words{text-align:left}td.why{white-space:normal;min-width:46rem}
.verdict{font-weight:650}.v-better{color:var(--better)}.v-worse{color:var(--worse)}
.v-equivalent{color:var(--equivalent)}.v-undecided{color:var(--undecided)}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;color:var(--soft);font-size:.85rem;margin:.3rem 0 .2rem;padding:0;
list-style:none;max-width:none}.key li{display:flex;align-items:center;gap:.4rem;margin:0}
.key i{width:14px;height:12px;border-radius:2px;flex:none}
.key b{background:var(--mark);color:var(--onmark);border-radius:9px;min-width:18px;text-align:center;font-size:.75rem;
line-height:18px;padding:0 3px;flex:none}
.i-signal{background:var(--signal)}.i-exploration{background:var(--exploration)}
.key .i-ink{width:3px;background:var(--ink)}
.i-band{background:var(--band);outline:1px solid var(--rule)}.key .i-thick{height:4px;width:20px;background:var(--soft)}
.key .i-thin{height:0;width:20px;border-top:1.5px solid var(--soft)}
.key .i-dot{width:10px;height:10px;border-radius:5px;background:var(--soft)}
.key .i-ring{width:11px;height:11px;border-radius:6px;border:2.5px solid var(--soft)}
.key .i-faint{width:8px;height:8px;border-radius:4px;background:var(--soft);opacity:.55}
.key .i-bar{width:4px;height:14px;background:var(--soft)}
.i-done{background:var(--bar)}.key .i-hollow{border:1.5px solid var(--bar)}
details{margin:.6rem 0}summary{cursor:pointer;font-weight:600;padding:.25rem 0}
pre{overflow:auto;max-height:34rem;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;margin:.5rem 0}
dl{margin:.5rem 0;display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.45rem 1.2rem;max-width:90ch}
dt{font-weight:600}dd{margin:0}
@media (max-width:600px){main{padding:18px 14px 40px}.lead{font-size:1.35rem}dl{grid-template-columns:1fr;gap:.1rem}
dd{margin-bottom:.6rem}.card{padding:10px 8px 8px}}
svg text{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}svg text[fill="var(--onmark)"]{stroke:none}
@page{size:A4 landscape;margin:11mm}
@media print{body{font-size:11px}main{max-width:none;padding:0}.lead{font-size:1.5rem;max-width:none}p,ul{max-width:none}
h2,h3,summary,section>p,section>.key{break-after:avoid}.card,tr{break-inside:avoid}.cards{grid-template-columns:repeat(2,1fr)}
pre{max-height:none;white-space:pre-wrap}
.scroll{overflow:visible;background:none;border:0}.scroll table{font-size:7.5px}.scroll th,.scroll td{padding:2px 3px;
white-space:normal;min-width:0;max-width:none}td.why{min-width:14rem}
details::details-content{content-visibility:visible;display:block;block-size:auto}}
"""
