/* The search page: results by number come first, and excerpts show formulas as words. Loaded before
   Sphinx' searchtools.js, which takes `Scorer` from here if it is there. */
"use strict";

const asked = (new URLSearchParams(location.search).get("q") || "")
  .toLowerCase().split(/\s+/).filter(Boolean).join(" ");

var Scorer = {
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
  // A title with the words as they were typed, such as "Proposition 6.9", is what was meant; one
  // with all of them, "The variance of the posterior", probably is.
  score: ([, title, , , score]) => {
    const heading = ` ${title.toLowerCase()} `;
    const all = asked && asked.split(" ").every((word) => heading.includes(word));
    return score + (asked && heading.includes(` ${asked} `) ? 100 : all ? 50 : 0);
  },
};

{
  const LETTERS = {
    alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", zeta: "ζ", eta: "η", theta: "θ",
    lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", varrho: "ϱ", sigma: "σ", tau: "τ",
    phi: "φ", varphi: "φ", psi: "ψ", omega: "ω", Phi: "Φ", Sigma: "Σ", Omega: "Ω", ell: "ℓ",
    sum: "Σ", prod: "Π", int: "∫", nabla: "∇", partial: "∂", infty: "∞", sqrt: "√", le: "≤", ge: "≥",
    leq: "≤", geq: "≥", ne: "≠", neq: "≠", approx: "≈", sim: "~", to: "→", mapsto: "↦", cdot: "·",
    times: "×", pm: "±", in: "∈", mid: "|", Vert: "‖", lVert: "‖", rVert: "‖", dots: "…", ldots: "…",
    cdots: "…", tfrac: "", frac: "", dfrac: "", quad: " ", qquad: " ", top: "ᵀ",
    // The book's own macros.
    vx: "x", vz: "z", vv: "v", veps: "ε", vxi: "ξ", vmu: "μ", abar: "ᾱ", sbar: "σ̄", btil: "β̃",
    snr: "SNR", KL: "KL", N: "N", U: "U", E: "E",
  };
  const SILENT = "script, style, svg, h1, .headerlink, .cell, .provenance, #jb-print-docs-body, "
    + "#jb-print-toc, nav, div.math";
  const FONTS = /\\(?:mathbf|boldsymbol|mathrm|mathcal|mathbb|text|operatorname|left|right|big|Big|bar|hat|tilde|underbrace|displaystyle)\b/g;

  const words = (tex) => tex
    .replace(/^\\\(|\\\)$/g, "")
    .replace(FONTS, "")
    .replace(/\\([A-Za-z]+)/g, (_, name) => LETTERS[name] ?? name)
    .replace(/\\[,;!: ]/g, " ")
    .replace(/[{}\\^_$]/g, "");

  document.addEventListener("DOMContentLoaded", () => {
    // The text of a page, or of what an anchor names, as the excerpts show it.
    Search.htmlToText = (html, anchor) => {
      const page = new DOMParser().parseFromString(html, "text/html");
      const main = page.querySelector("[role=main]");
      if (!main) return "";
      const id = anchor && decodeURIComponent(anchor.slice(1));
      const part = (id && page.getElementById(id)) || main;
      part.querySelectorAll(SILENT).forEach((e) => {
        e.replaceWith(e.matches("div.math") ? " … " : " ");
      });
      part.querySelectorAll("span.math").forEach((e) => { e.textContent = words(e.textContent); });
      return part.textContent.replace(/\s+/g, " ").trim();
    };
    // An excerpt around the words as they were typed, or else around one of them.
    Search.makeSearchSummary = (html, keywords, anchor) => {
      const text = Search.htmlToText(html, anchor);
      const at = [asked, ...keywords].map((word) => text.toLowerCase().indexOf(word));
      const from = Math.max((at.find((i) => i > -1) ?? 0) - 100, 0);
      const excerpt = document.createElement("p");
      excerpt.className = "context";
      const cut = text.slice(from ? text.indexOf(" ", from) + 1 : 0, from + 240);
      excerpt.textContent = `${from ? "… " : ""}${cut.trim()}${from + 240 < text.length ? " …" : ""}`;
      return excerpt;
    };
  });
}
