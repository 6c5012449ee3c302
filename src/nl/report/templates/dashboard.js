"use strict";
(function () {
  var data = JSON.parse(document.getElementById("data").textContent);
  var byPlace = {};
  data.cells.forEach(function (cell) {
    byPlace[[cell.task, cell.model, cell.facet || ""].join("\n")] = cell;
  });
  var families = {};
  data.tasks.forEach(function (task) { families[task.name] = task.family; });
  var low = {};
  data.measures.forEach(function (measure) { low[measure.name] = measure.low; });
  var MARKS = { seeds: "s", part: "p", dead: "d", overlap: "o" };
  var SIGNS = {
    failed: "\u2715 failed", broken: "\u26a0 broken", running: "\u25b6 running",
    stopped: "\u25a0 stopped", missing: "\u2013 missing", excluded: "left out"
  };
  var byId = function (id) { return document.getElementById(id); };

  // What is shown; every part of it is in the address, so that a view can be sent on.
  var PLAIN = { metric: firstMeasure(), rows: "tasks", value: "raw", split: firstSplit(), family: "",
                facet: data.facets[0] || "", q: "", hide: "", sort: "" };
  var view = readView();

  function firstMeasure() {
    var names = data.measures.map(function (m) { return m.name; });
    if (names.indexOf("accuracy") >= 0) { return "accuracy"; }
    return names.indexOf(data.goal) >= 0 ? data.goal : names[0] || "";
  }
  function firstSplit() {
    return ["test", "val"].filter(function (s) { return data.splits.indexOf(s) >= 0; })[0] ||
      data.splits[data.splits.length - 1] || "";
  }
  function readView() {
    var found = Object.assign({}, PLAIN);
    location.hash.slice(1).split("&").forEach(function (part) {
      var at = part.indexOf("=");
      var key = part.slice(0, at);
      if (at > 0 && key in PLAIN) {
        try { found[key] = decodeURIComponent(part.slice(at + 1)); } catch (error) { return; }
      }
    });
    if (!(found.metric in low)) { found.metric = PLAIN.metric; }
    if (data.splits.indexOf(found.split) < 0) { found.split = PLAIN.split; }
    if (data.facets.indexOf(found.facet) < 0) { found.facet = PLAIN.facet; }
    return found;
  }
  function writeView() {
    var parts = Object.keys(PLAIN).filter(function (key) { return view[key] !== PLAIN[key]; });
    var hash = "#" + parts.map(function (key) {
      return key + "=" + encodeURIComponent(view[key]);
    }).join("&");
    if (hash === "#" && !location.hash) { return; }
    try { history.replaceState(null, "", hash); } catch (error) { location.hash = hash; }
  }
  function change(more) {
    Object.assign(view, more);
    writeView();
    render();
  }

  // Cells
  function cellAt(task, model) { return byPlace[[task, model, view.facet].join("\n")]; }
  function key(split) { return split + "|" + view.metric; }
  function valueOf(cell, split) {
    var found = cell && cell.values && cell.values[key(split)];
    if (!found) { return null; }
    var mean = found[0], half = found[1];
    if (view.value === "score") {
      var chance = cell.chance && cell.chance[key(split)];
      if (chance === undefined || low[view.metric] || chance >= 1) { return null; }
      mean = (mean - chance) / (1 - chance);
      half = half === null ? null : half / (1 - chance);
    }
    return { mean: mean, half: half, n: found[2], low: found[3], high: found[4] };
  }
  function digits(number) {
    if (number === null || number === undefined) { return "\u2013"; }
    var size = Math.abs(number);
    if (size > 1e-9 && (size < 0.001 || size >= 1e5)) { return number.toExponential(1); }
    return number.toFixed(size < 100 ? 3 : 0);
  }
  function text(value) {
    return digits(value.mean) + (value.half === null ? "" : " \u00b1" + digits(value.half));
  }
  function chanceOf(task, split) {
    var found = null;
    data.models.forEach(function (model) {
      var cell = cellAt(task, model);
      if (found === null && cell && cell.chance && cell.chance[key(split)] !== undefined) {
        found = cell.chance[key(split)];
      }
    });
    return found !== null && view.value === "score" ? 0 : found;
  }
  // What a rule scores (oracle, shortcut): of a task, whatever the model.
  function levelOf(task, split, rule) {
    var found = null;
    data.models.forEach(function (model) {
      var cell = cellAt(task, model);
      var told = cell && cell.levels && cell.levels[key(split)];
      if (found === null && told && told[rule] !== undefined) {
        found = told[rule];
        var chance = cell.chance && cell.chance[key(split)];
        if (view.value === "score" && chance !== undefined) { found = (found - chance) / (1 - chance); }
      }
    });
    return found;
  }
  function better(a, b) { return low[view.metric] ? a < b : a > b; }
  // A mark that every finished cell has says nothing about one of them: it goes into the legend.
  var finished = data.cells.filter(function (cell) { return cell.values; });
  var everywhere = Object.keys(MARKS).filter(function (flag) {
    return finished.length && finished.every(function (cell) {
      return (cell.flags || []).indexOf(flag) >= 0;
    });
  });

  function element(tag, attributes, content) {
    var made = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      if (attributes[name] !== null) { made.setAttribute(name, attributes[name]); }
    });
    (Array.isArray(content) ? content : [content]).forEach(function (part) {
      if (part !== undefined && part !== null) {
        made.append(part);
      }
    });
    return made;
  }
  function shown() {
    var hidden = view.hide ? view.hide.split(",") : [];
    var words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    function holds(name) {
      return words.some(function (word) { return name.toLowerCase().indexOf(word) >= 0; });
    }
    var tasks = data.tasks.map(function (t) { return t.name; }).filter(function (name) {
      return !view.family || families[name] === view.family;
    });
    var models = data.models.filter(function (name) { return hidden.indexOf(name) < 0; });
    if (words.length) {
      // Words that name no task choose models, and the other way round.
      if (tasks.some(holds)) { tasks = tasks.filter(holds); }
      if (models.some(holds)) { models = models.filter(holds); }
      if (!data.tasks.some(function (t) { return holds(t.name); }) && !data.models.some(holds)) {
        tasks = [];
      }
    }
    return { tasks: tasks, models: models };
  }

  // Tables
  function bodyCell(task, model, split, best, shade) {
    var cell = cellAt(task, model);
    var value = valueOf(cell, split);
    var attributes = { tabindex: "-1", "data-task": task, "data-model": model, "data-split": split };
    if (!cell || !cell.values) {
      var state = cell ? cell.state : "missing";
      var run = cell && cell.runs[0];
      attributes["class"] = "open " + state;
      var sign = SIGNS[state] || state;
      var link = run && run.page ? element("a", { href: run.page, tabindex: "-1" }, sign) : sign;
      var far = run && run.step ? [" ", element("small", {}, run.step)] : [];
      return element("td", attributes, [link].concat(far));
    }
    if (!value) { return element("td", Object.assign(attributes, { "class": "num" }), "\u2013"); }
    var classes = ["num"];
    if (best) { classes.push("best"); }
    if (shade !== undefined && shade !== null) {
      classes.push("shaded");
      if (shade < 0) { classes.push("under"); }
      attributes.style = "--shade: " + Math.round(100 * Math.max(0, Math.min(1, shade))) + "%";
    }
    attributes["class"] = classes.join(" ");
    var pages = cell.runs.filter(function (run) { return run.page; });
    // The map shows means; intervals are a pointer or a key away.
    var number = (shade === undefined ? text(value) : digits(value.mean)) + (best ? " *" : "");
    if (shade !== undefined && value.half !== null) { attributes.title = text(value); }
    var content = [pages.length ? element("a", { href: pages[0].page, tabindex: "-1" }, number) : number];
    var marks = (cell.flags || []).filter(function (f) {
      return everywhere.indexOf(f) < 0 && (f !== "overlap" || split !== "train");
    });
    if (marks.length) {
      content.push(element("sup", {}, marks.map(function (f) { return MARKS[f]; }).join("")));
    }
    return element("td", attributes, content);
  }
  function bestOf(names, at) {
    var found = null;
    names.forEach(function (name) {
      var value = at(name);
      if (value && (found === null || better(value.mean, found))) { found = value.mean; }
    });
    return found;
  }
  function average(names, at) {
    var numbers = names.map(at).filter(Boolean).map(function (v) { return v.mean; });
    if (!numbers.length) { return null; }
    var sum = numbers.reduce(function (a, b) { return a + b; }, 0);
    return { mean: sum / numbers.length, half: null, count: numbers.length };
  }
  function averageCell(found, of, tag) {
    if (!found) { return element(tag || "td", { "class": "num" }, "\u2013"); }
    var all = found.count === of;
    var title = "mean over " + found.count + " of " + of;
    return element(tag || "td", { "class": "num", title: title },
      [digits(found.mean), all ? null : element("small", {}, " " + found.count + "/" + of)]);
  }
  function heads(table, names, numeric) {
    var sort = sortOf(table);
    return names.map(function (name, column) {
      var button = element("button", { type: "button" }, wrapped(name));
      button.addEventListener("click", function () {
        var up = sort.column === column ? !sort.up : column === 0 || low[view.metric];
        change({ sort: withSort(table, column, up) });
        var again = document.querySelectorAll("#" + table + " thead button")[column];
        if (again) { again.focus(); }
      });
      var state = sort.column === column ? (sort.up ? "ascending" : "descending") : null;
      return element("th", { scope: "col", "class": column && numeric ? "num" : null, "aria-sort": state }, button);
    });
  }
  // Long names may break after an underscore.
  function wrapped(name) {
    var parts = [];
    name.split("_").forEach(function (part, i, all) {
      parts.push(i < all.length - 1 ? part + "_" : part);
      if (i < all.length - 1) { parts.push(document.createElement("wbr")); }
    });
    return parts;
  }
  function sortOf(table) {
    var found = { column: null, up: true };
    view.sort.split(";").forEach(function (part) {
      var bits = part.split(":");
      if (bits[0] === table) { found = { column: Number(bits[1]), up: bits[2] === "up" }; }
    });
    return found;
  }
  function withSort(table, column, up) {
    var rest = view.sort.split(";").filter(function (part) { return part && part.split(":")[0] !== table; });
    return rest.concat([[table, column, up ? "up" : "down"].join(":")]).join(";");
  }
  function sorted(table, rows) {
    var sort = sortOf(table);
    if (sort.column === null) { return rows; }
    return rows.slice().sort(function (first, second) {
      var a = first.keys[sort.column], b = second.keys[sort.column];
      if (a === null || b === null) { return a === b ? 0 : a === null ? 1 : -1; }
      var order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return sort.up ? order : -order;
    });
  }
  function number(value) { return value ? value.mean : null; }

  function grid(table, split, what) {
    var tasksDown = view.rows === "tasks";
    var down = tasksDown ? what.tasks : what.models;
    var across = tasksDown ? what.models : what.tasks;
    function at(a, b) { return valueOf(tasksDown ? cellAt(a, b) : cellAt(b, a), split); }
    var rules = tasksDown ? ["oracle", "shortcut"].filter(function (rule) {
      return down.some(function (task) { return levelOf(task, split, rule) !== null; });
    }) : [];
    var names = tasksDown ? ["task", "chance"].concat(rules, across) : ["model"].concat(across, ["Avg"]);
    var rows = down.map(function (name) {
      var best = tasksDown ? bestOf(across, function (other) { return at(name, other); }) : null;
      var cells = across.map(function (other) {
        var value = at(name, other);
        if (!tasksDown) { best = bestOf(down, function (one) { return at(one, other); }); }
        var top = value !== null && value.mean === best;
        return tasksDown ? bodyCell(name, other, split, top) : bodyCell(other, name, split, top);
      });
      var keys = across.map(function (other) { return number(at(name, other)); });
      var head = element("th", { scope: "row" }, name);
      if (tasksDown) {
        var known = [chanceOf(name, split)].concat(rules.map(function (rule) { return levelOf(name, split, rule); }));
        cells = known.map(function (level) { return element("td", { "class": "num level" }, digits(level)); }).concat(cells);
        keys = [name].concat(known, keys);
      } else {
        var mean = average(across, function (other) { return at(name, other); });
        cells.push(averageCell(mean, across.length));
        keys = [name].concat(keys, [number(mean)]);
      }
      return { node: element("tr", {}, [head].concat(cells)), keys: keys };
    });
    var body = element("tbody", {}, sorted(table, rows).map(function (row) { return row.node; }));
    var foot = null;
    if (tasksDown) {
      foot = element("tfoot", {}, element("tr", {}, [element("th", { scope: "row" }, "Avg"), element("td", { colspan: String(1 + rules.length) }, "")].concat(
        across.map(function (model) {
          return averageCell(average(down, function (task) { return at(task, model); }), down.length);
        }))));
    } else {
      foot = element("tfoot", {}, element("tr", {}, [element("th", { scope: "row" }, "chance")].concat(
        across.map(function (task) { return element("td", { "class": "num" }, digits(chanceOf(task, split))); }),
        [element("td", {}, "")])));
    }
    var head = element("thead", {}, element("tr", {}, heads(table, names, true)));
    return frame(element("table", { "class": "cells", id: table }, [head, body, foot]), down.length && across.length);
  }
  function frame(table, filled) {
    if (!filled) { return element("p", { "class": "empty" }, "Nothing matches the filters."); }
    return element("div", { "class": "frame" }, table);
  }

  // Shares of the way from chance to 1 where chance is known, else from the worst to the best.
  function shades(tasks, models, split) {
    var found = {};
    tasks.forEach(function (task) {
      var values = models.map(function (model) { return valueOf(cellAt(task, model), split); });
      var numbers = values.filter(Boolean).map(function (v) { return v.mean; });
      var least = Math.min.apply(null, numbers), most = Math.max.apply(null, numbers);
      var chance = chanceOf(task, split);
      models.forEach(function (model, i) {
        if (!values[i]) { return; }
        var share = most > least ? (values[i].mean - least) / (most - least) : 1;
        if (low[view.metric]) { share = most > least ? 1 - share : 1; }
        if (chance !== null && !low[view.metric] && chance < 1) {
          share = (values[i].mean - chance) / (1 - chance);
        }
        found[task + "\n" + model] = share;
      });
    });
    return found;
  }
  function heat(what, split) {
    var order = [];
    what.tasks.forEach(function (task) { if (order.indexOf(families[task]) < 0) { order.push(families[task]); } });
    var tasks = [];
    order.forEach(function (family) {
      what.tasks.forEach(function (task) { if (families[task] === family) { tasks.push(task); } });
    });
    var whole = tasks.filter(function (task) {
      return what.models.every(function (model) { return valueOf(cellAt(task, model), split); });
    });
    var shade = shades(tasks, what.models, split);
    var means = what.models.map(function (model) {
      return average(whole, function (task) { return { mean: shade[task + "\n" + model] }; });
    });
    var ranks = means.map(function (mine) {
      return mine && 1 + means.filter(function (other) { return other && other.mean > mine.mean + 1e-9; }).length;
    });
    var rows = what.models.map(function (model, i) {
      var cells = tasks.map(function (task) {
        return bodyCell(task, model, split, false, shade[task + "\n" + model]);
      });
      var keys = tasks.map(function (task) { return number(valueOf(cellAt(task, model), split)); });
      cells.push(averageCell(means[i], tasks.length), element("td", { "class": "num" }, ranks[i] ? String(ranks[i]) : "\u2013"));
      return {
        node: element("tr", {}, [element("th", { scope: "row" }, model)].concat(cells)),
        keys: [model].concat(keys, [number(means[i]), ranks[i]])
      };
    });
    var groups = element("tr", { "class": "group" }, [element("td", {}, "")].concat(order.map(function (family) {
      var wide = tasks.filter(function (task) { return families[task] === family; }).length;
      return element("th", { scope: "colgroup", colspan: String(wide) }, family);
    }), [element("th", { scope: "colgroup", colspan: "2" }, low[view.metric] ? "all, worst to best" : "all, from chance to 1")]));
    var names = ["model"].concat(tasks, ["mean", "rank"]);
    var head = element("thead", {}, [groups, element("tr", {}, heads("heatmap", names, true))]);
    var body = element("tbody", {}, sorted("heatmap", rows).map(function (row) { return row.node; }));
    var several = order.length > 1 ? familyTable(order, tasks, what.models, shade) : null;
    byId("families").replaceChildren(several || "");
    var drawn = frame(element("table", { "class": "cells", id: "heatmap" }, [head, body]), tasks.length && what.models.length);
    return element("div", {}, [drawn, scale()]);
  }
  function scale() {
    var steps = [0, 0.25, 0.5, 0.75, 1].map(function (share) {
      return element("span", { style: "--shade: " + 100 * share + "%" }, String(share));
    });
    var says = "0 is chance where it is known, else the worst of the column; dashed: below it";
    return element("p", { "class": "legend" }, steps.concat([element("em", {}, says)]));
  }
  function familyTable(order, tasks, models, shade) {
    var rows = models.map(function (model) {
      var means = order.map(function (family) {
        var mine = tasks.filter(function (task) { return families[task] === family; });
        var found = average(mine, function (task) {
          var share = shade[task + "\n" + model];
          return share === undefined ? null : { mean: share };
        });
        return { found: found, of: mine.length };
      });
      return {
        node: element("tr", {}, [element("th", { scope: "row" }, model)].concat(means.map(function (one) {
          return averageCell(one.found, one.of);
        }))),
        keys: [model].concat(means.map(function (one) { return number(one.found); }))
      };
    });
    var head = element("thead", {}, element("tr", {}, heads("bygroup", [low[view.metric] ? "mean of a family, worst to best" : "mean of a family, from chance to 1"].concat(order), true)));
    var body = element("tbody", {}, sorted("bygroup", rows).map(function (row) { return row.node; }));
    return frame(element("table", { "class": "cells", id: "bygroup" }, [head, body]), true);
  }

  // The page
  function legend() {
    var parts = ["* best of its " + (view.rows === "tasks" ? "row" : "column") + "."];
    parts.push((low[view.metric] ? "Lower" : "Higher") + " is better.");
    if (data.cells.some(function (cell) { return cell.levels && cell.levels[key(view.split)]; })) {
      parts.push("Shortcut: the best of the rules that do without what the task is about.");
    }
    parts.push("Means over seeds \u00b1 half the 95 % interval (Student).");
    everywhere.forEach(function (flag) { parts.push("Every cell: " + data.flags[flag] + "."); });
    Object.keys(MARKS).forEach(function (flag) {
      var used = finished.some(function (cell) { return (cell.flags || []).indexOf(flag) >= 0; });
      if (used && everywhere.indexOf(flag) < 0) { parts.push(MARKS[flag] + ": " + data.flags[flag] + "."); }
    });
    parts.push("Arrow keys move between cells, Enter opens the run, / goes to the filter.");
    byId("legend").textContent = parts.join(" ");
  }
  function title(split) { return split ? split.charAt(0).toUpperCase() + split.slice(1) : ""; }
  function render() {
    var what = shown();
    var main = ["train", "test"].filter(function (s) { return data.splits.indexOf(s) >= 0; });
    if (main.indexOf(view.split) < 0 && view.split) { main.push(view.split); }
    byId("tables").replaceChildren.apply(byId("tables"), main.map(function (split) {
      return element("section", { "aria-label": title(split) }, [
        element("h2", {}, title(split) + ": " + view.metric + (view.value === "score" ? ", from chance to 1" : "")),
        grid("table-" + split.replace(/[^a-z0-9]/gi, "_"), split, what)
      ]);
    }));
    byId("heat-title").textContent = "Heat map: " + view.metric + ", " + view.split;
    byId("heat").replaceChildren(heat(what, view.split));
    legend();
    controls();
    document.querySelectorAll("table.cells").forEach(function (table) {
      var first = table.querySelector("td[data-task]");
      if (first) { first.tabIndex = 0; }
    });
  }
  function pressed(label, on, act) {
    var button = element("button", { type: "button", "aria-pressed": String(on), "data-name": label }, label);
    button.addEventListener("click", act);
    return button;
  }
  function fill(id, buttons) {
    var held = document.activeElement && byId(id).contains(document.activeElement) ? document.activeElement.dataset.name : null;
    byId(id).replaceChildren.apply(byId(id), buttons);
    if (held !== null) {
      buttons.forEach(function (button) { if (button.dataset.name === held) { button.focus(); } });
    }
  }
  function controls() {
    fill("measures", data.measures.map(function (measure) {
      return pressed(measure.name, view.metric === measure.name, function () { change({ metric: measure.name }); });
    }));
    fill("layout", [
      pressed("tasks down", view.rows === "tasks", function () { change({ rows: "tasks", sort: "" }); }),
      pressed("models down", view.rows === "models", function () { change({ rows: "models", sort: "" }); }),
      pressed("from chance to 1", view.value === "score", function () {
        change({ value: view.value === "score" ? "raw" : "score" });
      })
    ]);
    byId("facet-label").hidden = data.facets.length < 2;
    byId("facet").value = view.facet;
    byId("split").value = view.split;
    byId("family").value = view.family;
    if (document.activeElement !== byId("filter")) { byId("filter").value = view.q; }
    var hidden = view.hide ? view.hide.split(",") : [];
    byId("models").querySelectorAll("input").forEach(function (box) { box.checked = hidden.indexOf(box.value) < 0; });
    byId("choose").firstElementChild.textContent = "Models (" + (data.models.length - hidden.length) + " of " + data.models.length + ")";
  }
  function options(id, names, whole) {
    byId(id).replaceChildren.apply(byId(id), (whole ? [element("option", { value: "" }, whole)] : []).concat(
      names.map(function (name) { return element("option", { value: name }, name); })));
    byId(id).addEventListener("change", function () {
      var more = {};
      more[id] = byId(id).value;
      change(more);
    });
  }
  options("facet", data.facets);
  options("split", data.splits);
  options("family", data.tasks.map(function (t) { return t.family; }).filter(function (f, i, all) { return all.indexOf(f) === i; }), "all");
  byId("filter").addEventListener("input", function () { change({ q: byId("filter").value }); });
  data.models.forEach(function (model) {
    var box = element("input", { type: "checkbox", value: model });
    box.addEventListener("change", function () {
      var hidden = (view.hide ? view.hide.split(",") : []).filter(function (name) { return name !== model; });
      if (!box.checked) { hidden.push(model); }
      change({ hide: hidden.join(",") });
    });
    byId("models").append(element("label", {}, [box, " " + model]));
  });

  // Cell in focus
  function detail(cell, task, model, split) {
    var parts = [element("b", {}, model + " on " + task), ", " + split + " " + view.metric + ": "];
    var value = valueOf(cell, split);
    var state = cell ? cell.state : "missing";
    parts.push(value ? text(value) : SIGNS[state] || state);
    if (value && value.n > 1) { parts.push(" (" + value.n + " seeds, " + digits(value.low) + " to " + digits(value.high) + ")"); }
    var chance = chanceOf(task, split);
    if (chance !== null) { parts.push("; chance " + digits(chance)); }
    if (cell && cell.sizes && cell.sizes[key(split)]) { parts.push("; n = " + cell.sizes[key(split)]); }
    ((cell && cell.flags) || []).forEach(function (flag) { parts.push("; " + data.flags[flag]); });
    ((cell && cell.runs) || []).forEach(function (run) {
      var label = "seed " + run.seed + " (" + run.state + (run.step ? ", " + run.step : "") + ")";
      parts.push(" \u00b7 ", run.page ? element("a", { href: run.page }, label) : label);
      if (run.error) { parts.push(" ", element("span", { "class": "bad" }, run.error)); }
    });
    byId("detail").replaceChildren.apply(byId("detail"), parts);
  }
  function point(event) {
    var cell = event.target.closest && event.target.closest("td[data-task]");
    if (cell) { detail(cellAt(cell.dataset.task, cell.dataset.model), cell.dataset.task, cell.dataset.model, cell.dataset.split); }
  }
  document.addEventListener("mouseover", point);
  document.addEventListener("focusin", point);
  document.addEventListener("keydown", function (event) {
    if (event.key === "/" && !/INPUT|SELECT/.test(event.target.tagName)) {
      event.preventDefault();
      byId("filter").focus();
      return;
    }
    if (event.key === "Escape" && event.target === byId("filter")) {
      byId("filter").value = "";
      change({ q: "" });
      return;
    }
    var cell = event.target.closest && event.target.closest("td[data-task]");
    if (!cell) { return; }
    var moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Enter" && event.target === cell) {
      var link = cell.querySelector("a");
      if (link) { link.click(); }
    } else if (moves[event.key]) {
      event.preventDefault();
      var row = cell.parentElement.parentElement.rows[cell.parentElement.sectionRowIndex + moves[event.key][0]];
      var next = row && row.cells[cell.cellIndex + moves[event.key][1]];
      if (next && next.dataset.task) {
        cell.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    }
  });
  window.addEventListener("hashchange", function () { view = readView(); render(); });

  // Files
  function save(name, kind, content) {
    var link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type: kind })) });
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  }
  byId("save-json").addEventListener("click", function () {
    save(data.title + ".json", "application/json", JSON.stringify(data, null, 1));
  });
  byId("save-csv").addEventListener("click", function () {
    var lines = [["task", "model", "setting", "state", "split", "measure", "mean", "half interval", "seeds", "chance", "flags"]];
    data.cells.forEach(function (cell) {
      var names = Object.keys(cell.values || {});
      (names.length ? names : [""]).forEach(function (name) {
        var at = name.indexOf("|"), value = name ? cell.values[name] : [];
        lines.push([cell.task, cell.model, cell.facet || "", cell.state, name.slice(0, Math.max(0, at)), name.slice(at + 1),
          value[0], value[1], value[2], name && cell.chance ? cell.chance[name] : "", (cell.flags || []).join(" ")]);
      });
    });
    save(data.title + ".csv", "text/csv", lines.map(function (line) {
      return line.map(function (one) {
        var plain = one === null || one === undefined ? "" : String(one);
        return /[",\n]/.test(plain) ? '"' + plain.replace(/"/g, '""') + '"' : plain;
      }).join(",");
    }).join("\n") + "\n");
  });
  render();
})();
