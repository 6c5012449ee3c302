"use strict";
(function () {
  var data = JSON.parse(document.getElementById("data").textContent);
  var byId = function (id) { return document.getElementById(id); };
  function element(tag, attributes, content) {
    var made = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    (Array.isArray(content) ? content : [content]).forEach(function (part) {
      if (part !== undefined && part !== null) { made.append(part); }
    });
    return made;
  }
  function fill(select, pairs) {
    select.replaceChildren.apply(select, pairs.map(function (pair) {
      return element("option", { value: pair[0] }, pair[1]);
    }));
  }
  function distinct(values) {
    return values.filter(function (value, i) { return values.indexOf(value) === i; });
  }

  // Examples
  function examples() {
    var rows = data.examples;
    var kinds = distinct(rows.map(function (row) { return row.kind; })).filter(Boolean);
    var splits = distinct(rows.map(function (row) { return row.split; }));
    fill(byId("example-split"), [["", "all"]].concat(splits.map(function (s) { return [s, s]; })));
    fill(byId("example-kind"), [["", "all"]].concat(kinds.map(function (k) { return [k, k]; })));
    if (splits.indexOf("test") >= 0) { byId("example-split").value = "test"; }
    function draw() {
      var split = byId("example-split").value, kind = byId("example-kind").value;
      var right = byId("example-right").value, find = byId("example-find").value.toLowerCase();
      var order = byId("example-order").value;
      var found = rows.filter(function (row) {
        return (!split || row.split === split) && (!kind || row.kind === kind) &&
          (!right || row.right === (right === "right")) && (!find || row.text.toLowerCase().indexOf(find) >= 0);
      });
      var sure = function (row) { return Math.abs(row.p - 0.5); };
      found.sort(function (a, b) {
        return order === "index" ? a.index - b.index : (order === "sure" ? 1 : -1) * (sure(b) - sure(a));
      });
      byId("example-table").tBodies[0].replaceChildren.apply(byId("example-table").tBodies[0], found.map(function (row) {
        return element("tr", { "class": row.right ? "right" : "wrong" }, [
          element("th", { scope: "row", title: JSON.stringify(row.raw) }, element("code", {}, row.text)),
          element("td", {}, row.split), element("td", {}, row.kind), element("td", { "class": "num" }, String(row.label)),
          element("td", { "class": "num share", style: "--shade: " + Math.round(100 * row.p) + "%" }, row.p.toFixed(4)),
          element("td", { "class": "answer" }, row.right ? "right" : "\u2715 wrong"),
          element("td", { "class": "num" }, String(row.times)), element("td", { "class": "num" }, String(row.index))
        ]);
      }));
      byId("example-count").textContent = found.length + " of " + rows.length + " kept examples. Equal ones are shown once; times says how many there are.";
    }
    ["split", "kind", "right", "order"].forEach(function (name) {
      byId("example-" + name).addEventListener("change", draw);
    });
    byId("example-find").addEventListener("input", draw);
    draw();
  }

  // Answers of a probe
  function answers() {
    var list = document.querySelector("#answers .strips");
    var rows = Array.prototype.slice.call(list.children);
    function draw() {
      var right = byId("answer-right").value, order = byId("answer-order").value, shown = 0;
      rows.slice().sort(function (a, b) {
        return order === "index" ? a.dataset.index - b.dataset.index : b.dataset[order] - a.dataset[order];
      }).forEach(function (row) {
        row.hidden = right !== "" && row.dataset.right !== right;
        shown += row.hidden ? 0 : 1;
        list.append(row);
      });
      byId("answer-count").textContent = shown + " of " + rows.length + " kept rows.";
    }
    ["right", "order"].forEach(function (name) {
      byId("answer-" + name).addEventListener("change", draw);
    });
    draw();
  }

  // Attention
  function heat(caption, rows, columns, values) {
    var head = element("tr", {}, [element("th", {}, "")].concat(columns.map(function (c) {
      return element("th", { scope: "col", "class": "num" }, c);
    })));
    var body = values.map(function (line, i) {
      return element("tr", {}, [element("th", { scope: "row" }, rows[i])].concat(line.map(function (value) {
        return element("td", { style: "--shade: " + Math.round(100 * value) + "%" }, value.toFixed(2));
      })));
    });
    var table = element("table", { "class": "heat" }, [element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, body)]);
    return element("div", { "class": "frame" }, table);
  }
  function attention() {
    var all = data.attention.examples;
    function draw() {
      var one = all[Number(byId("attention-example").value)];
      var layers = one.layers.length, heads = one.layers[0].length;
      if (byId("attention-layer").options.length !== layers) {
        fill(byId("attention-layer"), one.layers.map(function (_, i) { return [i, i + 1]; }));
      }
      if (byId("attention-head").options.length !== heads) {
        fill(byId("attention-head"), one.layers[0].map(function (_, i) { return [i, i + 1]; }));
      }
      var values = one.layers[Number(byId("attention-layer").value)][Number(byId("attention-head").value)];
      byId("attention-map").replaceChildren(heat(one.title, one.rows, one.steps, values));
    }
    fill(byId("attention-example"), all.map(function (one, i) { return [i, one.title]; }));
    ["example", "layer", "head"].forEach(function (name) {
      byId("attention-" + name).addEventListener("change", draw);
    });
    if (all.length) { draw(); }
    var table = data.attention.vocabulary;
    if (table) {
      byId("attention-tokens").append(heat("Tokens out of context: row attends to column", data.attention.tokens, data.attention.tokens, table));
    }
  }

  // Parameters
  document.querySelectorAll("button[data-weight]").forEach(function (button) {
    button.addEventListener("click", function () {
      var place = button.parentElement.querySelector(".numbers");
      var open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      if (!open) { place.replaceChildren(); return; }
      var shape = data.weights[button.dataset.weight][0], values = data.weights[button.dataset.weight][1];
      var wide = shape.length ? shape[shape.length - 1] : 1;
      var lines = [];
      for (var at = 0; at < values.length; at += wide) {
        lines.push(values.slice(at, at + wide).map(function (v) { return v.toPrecision(4); }).join("\t"));
      }
      place.replaceChildren(element("pre", { tabindex: "0" }, lines.join("\n")));
    });
  });
  if (data.examples.length) { examples(); }
  if (data.answers) { answers(); }
  if (data.attention) { attention(); }
})();
