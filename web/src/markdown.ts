// Markdown to HTML that is safe to show: what the model wrote is text, never a page of its own.
import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import protobuf from "highlight.js/lib/languages/protobuf";
import python from "highlight.js/lib/languages/python";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { Marked, type Tokens } from "marked";

const languages = {
  bash, c, cpp, csharp, css, diff, go, ini, java, javascript, json, kotlin, protobuf, python, ruby, rust, sql,
  typescript, xml, yaml,
};
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);
hljs.registerAliases(["toml"], { languageName: "ini" });

/** Code longer than this is not coloured: it would hold up everything else. */
const COLOURED = 50_000;
/** Blocks whose HTML is kept, so that a growing answer is not rendered from its beginning each time. */
const KEPT = 1000;

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
}

const marked = new Marked({
  gfm: true,
  renderer: {
    // Tags in prose are meant to be seen.
    html: ({ text }: Tokens.HTML | Tokens.Tag) => escape(text),
    // Pictures would be fetched from elsewhere.
    image: ({ href, text }: Tokens.Image) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    code: ({ text, lang }: Tokens.Code) => {
      const name = (lang ?? "").trim().split(/[\s,{]/)[0]!.toLowerCase();
      const known = hljs.getLanguage(name) && text.length < COLOURED;
      const body = known ? hljs.highlight(text, { language: name, ignoreIllegals: true }).value : escape(text);
      const head = `<span>${escape(name || "text")}</span><button type="button" data-copy>Copy</button>`;
      return `<div class="code"><div class="code-head">${head}</div><pre><code>${body}\n</code></pre></div>`;
    },
    table(token: Tokens.Table) {
      const row = (cells: Tokens.TableCell[]): string => {
        const cell = (each: Tokens.TableCell): string => {
          const tag = each.header ? "th" : "td";
          const side = each.align ? ` class="${each.align}"` : "";
          return `<${tag}${side}>${this.parser.parseInline(each.tokens)}</${tag}>`;
        };
        return `<tr>${cells.map(cell).join("")}</tr>`;
      };
      const body = token.rows.map(row).join("");
      return `<div class="table"><table><thead>${row(token.header)}</thead><tbody>${body}</tbody></table></div>`;
    },
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

const TAGS = [
  "a", "b", "blockquote", "br", "button", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i",
  "input", "li", "ol", "p", "pre", "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
const ATTRIBUTES = ["checked", "class", "data-copy", "disabled", "href", "rel", "start", "target", "type"];

function sanitize(html: string): TrustedHTML {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    // These hold no addresses.
    ADD_URI_SAFE_ATTR: ["start", "type"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    RETURN_TRUSTED_TYPE: true,
  });
}

const kept = new Map<string, TrustedHTML>();

/** The blocks of a text as HTML: paragraphs, lists, code. The last one may still grow. */
export function render(text: string, growing: boolean): TrustedHTML[] {
  const blocks = marked.lexer(text);
  // Where addresses of links stand by themselves, a block's HTML depends on what stands elsewhere.
  const alone = Object.keys(blocks.links).length === 0;
  return blocks.flatMap((block, k) => {
    if (block.type === "space") return [];
    const found = alone ? kept.get(block.raw) : undefined;
    if (found !== undefined) return [found];
    const html = sanitize(marked.parser([block]));
    if (alone && (!growing || k < blocks.length - 1)) {
      kept.set(block.raw, html);
      if (kept.size > KEPT) kept.delete(kept.keys().next().value!);
    }
    return [html];
  });
}
