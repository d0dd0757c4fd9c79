-- Puts the model version that a rollout's weights pick onto an inference request.
--
-- A virtual host's metadata holds, for each of its deployments, the versions that have traffic with their weights,
-- and the signature that callers are told after a wrong request:
--   {["breast-cancer"] = {weights = {["3"] = 90, ["4"] = 10}, signature = "..."}}
-- While a version is rolled out, `trial` says how requests meet it beside its share:
--   {version = "4", mirrored = 50, sticky = "x-user-id", header = "x-cohort", values = {beta = true}}
-- So many per cent of the requests are also asked of it, as a shadow that answers nobody; callers with the same value of the
-- header `sticky` get the same version; those whose `header` has one of the `values` get the new one.
--
-- Deployments are spread over many route configurations; which one a request goes by, a header says, and its model with it for
-- when it is answered. What callers send of it Envoy takes away.
--
-- gRPC: the request's Protobuf is scanned field by field, without parsing what is inside. In Protobuf the last value
-- of a field wins, so the version (field 2) and, where the caller gave none, an id (field 3) are appended and nothing
-- is rewritten. A request that names a version is left alone. REST: the version goes into the path, and an id stays
-- the caller's affair.
--
-- A gRPC request is read whole, for its model stands in the message and decides where it goes. One whose caller names the
-- model in a header, too, goes on while it arrives: only its first and its last bytes are changed (docs/adr/0050).

-- Predictions are found by their ids, and no index takes a text of any length.
local MAX_ID_BYTES = 256

-- As in headrace.client.inference_protocol.
local MODEL_HEADER = "headrace-model"
-- Name, version and id stand before all else in what the protocol's clients write, and take less.
local HEAD_BYTES = 1024
-- No message. Whatever is wrong with a request that has already been sent on, the server is sent this instead, and its answer is
-- changed into what is wrong.
local NO_MESSAGE = "\0\0\0\0\1\7"
-- A message that ends early is filled up to its length; one that lacks more than this waits until its caller gives up.
local MAX_FILLED_BYTES = 1048576

-- As in headrace.inference.xds.routes.
local SHARDS = 64
local SHARD_HEADER = "x-headrace-shard"
local COLD_HEADER = "x-headrace-cold"

local SERVICE = "/inference.GRPCInferenceService/"
local INFER = SERVICE .. "ModelInfer"
local STREAM = SERVICE .. "ModelStreamInfer"
local INDEX = "/v2/repository/index"
-- Their requests begin with the model's name and version, as ModelInfer's do.
local MODEL_METHODS = {ModelReady = true, ModelMetadata = true, ModelConfig = true}

-- Longer than HEADRACE_INFERENCE_WAKE_SECONDS may be, after which the inference service says what is wrong.
local WAKE_MILLISECONDS = 310000
local LIST_MILLISECONDS = 10000

-- Triton's JSON parser calls itself for each level, and ends the whole server where its stack does: somewhere above
-- 100,000. What is shorter than this cannot be nested so deep, and is not looked at.
local SHORT_JSON_BYTES = 32768
local MAX_JSON_DEPTH = 64

-- As in headrace.inference.xds.mirrors; Envoy takes them away from whatever callers send.
local MIRROR_CLUSTER = "x-headrace-mirror-cluster"
local SHADOW_VERSION = "x-headrace-shadow-version"
local MIRROR_ID = "x-headrace-mirror-id"

-- One more table's address makes the seeds of Envoy's workers differ.
local worker = tonumber(string.match(tostring({}), "0x(%x+)"), 16) or 0
math.randomseed(os.time() + worker % 2147483647)
local made_ids = 0

local function new_id()
  made_ids = made_ids + 1
  return string.format(
    "%08x-%08x-%08x-%08x", os.time() % 4294967296, worker % 4294967296, math.random(0, 4294967295), made_ids)
end

local function refuse_grpc(handle, status, message)
  handle:respond({
    [":status"] = "200",
    ["content-type"] = "application/grpc",
    ["grpc-status"] = tostring(status),
    ["grpc-message"] = message,
  }, "")
end

local function refuse_rest(handle, status, message)
  local told = string.gsub(message, '[%c"\\]', "?")
  -- Of 5xx the listener makes JSON, whoever answers so.
  if status < 500 then told = '{"error": "' .. told .. '"}' end
  handle:respond({[":status"] = tostring(status), ["content-type"] = "application/json"}, told)
end

-- A place in the traffic, from 0 to below 100: the same for the same key and trial, and spread evenly over keys, also where they
-- count up. A generator of Lehmer's takes the characters in; what it multiplies stays below 2^53.
local function place_of(key)
  local state = 1
  for at = 1, #key do state = (state * 16807 + string.byte(key, at)) % 2147483647 end
  for _ = 1, 3 do state = state * 16807 % 2147483647 end
  return state / 2147483647 * 100
end

local function place(handle, trial)
  local key = trial and trial.sticky and handle:headers():get(trial.sticky)
  if key == nil then return math.random() * 100 end
  -- With the version: whoever is the first to try one is not the first to try the next.
  return place_of(trial.version .. "/" .. key)
end

local function in_audience(handle, trial)
  local value = trial.header and handle:headers():get(trial.header)
  return value ~= nil and trial.values[value]
end

local function pick(handle, route)
  local trial = route.trial
  if trial and in_audience(handle, trial) then return trial.version end
  local point = place(handle, trial)
  local tried = trial and trial.version
  if tried then
    -- First: as its share grows, whoever has it keeps it.
    point = point - (route.weights[tried] or 0)
    if point < 0 then return tried end
  end
  local chosen = nil
  for version, weight in pairs(route.weights) do
    if weight > 0 and version ~= tried then
      chosen = version
      point = point - weight
      if point < 0 then break end
    end
  end
  return chosen
end

local function shard(model)
  local number = 0
  for at = 1, #model do number = (number * 31 + string.byte(model, at)) % 65521 end
  return "models-" .. number % SHARDS
end

-- What is known of a model in the routes that the request goes by.
local function known(handle, model)
  local host = handle:virtualHost()
  return host and host:metadata():get(model)
end

-- Makes a request go by its model's routes.
local function find(handle, model)
  handle:headers():replace(SHARD_HEADER, shard(model) .. ";" .. model)
  -- Asking for the route's metadata looks for the route; asking for the virtual host does not.
  handle:metadata()
  return known(handle, model)
end

-- For the limit of requests a second that a model may have.
local function note_model(handle, model)
  if MODELS_ARE_LIMITED then handle:streamInfo():dynamicMetadata():set("headrace", "model", model) end
end

-- Has Envoy copy the request to the version that shadows, by way of mirror_stamp.lua. Of the answers to both the prediction log
-- keeps the same id.
local function mirror(handle, route, cluster)
  local trial = route.trial
  if trial == nil or trial.mirrored == nil or math.random() * 100 >= trial.mirrored then return end
  local headers = handle:headers()
  headers:replace(MIRROR_CLUSTER, cluster)
  headers:replace(SHADOW_VERSION, trial.version)
  headers:replace(MIRROR_ID, new_id())
end

local function varint(number)
  local bytes = {}
  while number >= 128 do
    bytes[#bytes + 1] = string.char(number % 128 + 128)
    number = math.floor(number / 128)
  end
  bytes[#bytes + 1] = string.char(number)
  return table.concat(bytes)
end

-- Asks the inference service, with a message that holds `message` alone: the first text of its answer, or nil and why not.
local function ask_service(handle, method, message, milliseconds)
  local headers, body = handle:httpCall("stamp", {
    [":method"] = "POST",
    [":path"] = "/headrace.api.inference.v1.StampService/" .. method,
    [":authority"] = "headrace",
    ["te"] = "trailers",
    ["content-type"] = "application/grpc",
  }, string.char(0, 0, 0, math.floor(#message / 256), #message % 256) .. message, milliseconds)
  local status = headers["grpc-status"]
  if headers[":status"] ~= "200" or (status ~= nil and status ~= "0") then
    return nil, headers["grpc-message"] or "the inference service does not answer; try again later"
  end
  -- Behind the frame's five bytes a text's tag, its length in groups of seven bits, and the text; nothing where it is empty.
  local at = 7
  while string.byte(body, at) and string.byte(body, at) >= 128 do at = at + 1 end
  return string.sub(body, at + 1), nil
end

-- Sends a request to the servers that have its model.
local function go(handle, route, model)
  local group, problem = route.group, nil
  if route.cold then
    group, problem = ask_service(handle, "Wake", "\10" .. varint(#model) .. model, WAKE_MILLISECONDS)
    if group == nil then return problem end
  end
  if group ~= nil and group ~= "" then handle:streamInfo():dynamicMetadata():set("envoy.lb", "group", group) end
  return nil
end

local function live(weights)
  local versions = {}
  for version in pairs(weights) do versions[#versions + 1] = version end
  table.sort(versions)
  return table.concat(versions, ", ")
end

local function unknown_version(model, version, weights)
  return "model " .. model .. " has no live version " .. version .. "; live: " .. live(weights)
end

local function unknown_model(model)
  return "no model " .. model .. " is deployed"
end

local NOT_ONE_MESSAGE = "the request is not one whole message"
local OTHER_MODEL = "the header " .. MODEL_HEADER .. " names another model than the request"

-- Reads a buffer in windows, so that a large tensor is skipped and never copied into Lua.
local function reader(body, size)
  local window, first, last = "", 0, 0
  local self = {at = 5}
  function self.byte()
    if self.at >= size then return nil end
    if self.at < first or self.at >= last then
      first = self.at
      last = math.min(size, first + 512)
      window = body:getBytes(first, last - first)
    end
    self.at = self.at + 1
    return string.byte(window, self.at - first)
  end
  function self.varint()
    local value, scale = 0, 1
    for _ = 1, 10 do
      local byte = self.byte()
      if byte == nil then return nil end
      value = value + (byte % 128) * scale
      if byte < 128 then return value end
      scale = scale * 128
    end
    return nil
  end
  function self.text(length)
    if self.at + length > size then return nil end
    local value = length > 0 and body:getBytes(self.at, length) or ""
    self.at = self.at + length
    return value
  end
  return self
end

-- The top-level strings model_name, model_version and id; nil where the bytes are no Protobuf. Of a `head` those that stand before
-- all other fields.
local function scan(body, size, head)
  local found = {"", "", ""}
  local read = reader(body, size)
  while read.at < size do
    local key = read.varint()
    if key == nil then return nil end
    local field, wire = math.floor(key / 8), key % 8
    if head and field > 3 then break end
    if wire == 2 then
      local length = read.varint()
      if head and length ~= nil and field == 3 and length > MAX_ID_BYTES then
        -- It may go on behind the head.
        found[3] = string.rep("?", MAX_ID_BYTES + 1)
        break
      end
      if length == nil or read.at + length > size then return nil end
      if field <= 3 then
        found[field] = read.text(length)
      else
        read.at = read.at + length
      end
    elseif wire == 0 then
      if read.varint() == nil then return nil end
    elseif wire == 1 then
      read.at = read.at + 8
    elseif wire == 5 then
      read.at = read.at + 4
    else
      return nil
    end
  end
  if read.at > size then return nil end
  return found[1], found[2], found[3]
end

-- The bytes before a message: that it is not compressed, and its length.
local function frame(length)
  return string.char(0, math.floor(length / 16777216) % 256, math.floor(length / 65536) % 256,
    math.floor(length / 256) % 256, length % 256)
end

local function framed_length(prefix)
  local a, b, c, d = string.byte(prefix, 2, 5)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local function text_field(number, text)
  return string.char(number * 8 + 2) .. varint(#text) .. text
end

-- What is wrong with a message whose first bytes are these: a status of gRPC and words, or nil.
local function wrong_prefix(prefix)
  if #prefix < 5 then return 3, "the request is empty" end
  if string.byte(prefix, 1) ~= 0 then
    return 12, "compressed requests are not supported; send them uncompressed"
  end
  return nil
end

-- The same for what the message says of itself.
local function wrong_request(model, id)
  if model == nil then return 3, "the request is not a ModelInferRequest" end
  if model == "" then return 3, "model_name is missing" end
  if #id > MAX_ID_BYTES then return 3, "the id is longer than " .. MAX_ID_BYTES .. " bytes" end
  return nil
end

local function wrong_version(model, version, route)
  if version == "" or route.weights[version] ~= nil then return nil end
  if string.find(version, "[^%w]") or #version > 20 then version = "of that name" end
  return 5, unknown_version(model, version, route.weights)
end

-- The routes of the model that a request names; else a status and words.
local function find_for_grpc(handle, model)
  if #model > 128 or string.find(model, "[^%w._-]") then return nil, 5, "no model of that name is deployed" end
  local route = find(handle, model)
  if route == nil then return nil, 5, unknown_model(model) end
  note_model(handle, model)
  return route
end

local function no_version(model)
  return 14, "model " .. model .. " has no version with traffic"
end

-- `named`: the model that a header names, or nil.
local function stamp_whole(handle, named)
  local body = handle:body()
  local size = body and body:length() or 0
  local prefix = size > 0 and body:getBytes(0, math.min(5, size)) or ""
  local status, problem = wrong_prefix(prefix)
  if status ~= nil then return refuse_grpc(handle, status, problem) end
  if framed_length(prefix) ~= size - 5 then return refuse_grpc(handle, 3, NOT_ONE_MESSAGE) end
  local model, version, id = scan(body, size)
  status, problem = wrong_request(model, id)
  if status ~= nil then return refuse_grpc(handle, status, problem) end
  if named ~= nil and named ~= model then return refuse_grpc(handle, 3, OTHER_MODEL) end
  local route
  route, status, problem = find_for_grpc(handle, model)
  if route == nil then return refuse_grpc(handle, status, problem) end
  status, problem = wrong_version(model, version, route)
  if status ~= nil then return refuse_grpc(handle, status, problem) end

  local appended = ""
  if version == "" then
    local chosen = pick(handle, route)
    if chosen == nil then return refuse_grpc(handle, no_version(model)) end
    mirror(handle, route, "triton-grpc-mirror")
    appended = text_field(2, chosen)
  end
  if id == "" then appended = appended .. text_field(3, new_id()) end
  if appended ~= "" then
    body:setBytes(frame(size - 5 + #appended) .. body:getBytes(5, size - 5) .. appended)
  end
  -- Last: whoever waits there has no hold of the body any more.
  problem = go(handle, route, model)
  if problem ~= nil then return refuse_grpc(handle, 14, problem) end
end

-- A text that is read as a buffer is.
local Text = {}
Text.__index = Text
function Text:getBytes(first, length) return string.sub(self.text, first + 1, first + length) end

-- What is to be appended to a message that begins so, and its length without that; else nil, a status and words.
local function stamp_head(head, route, model, chosen)
  local status, problem = wrong_prefix(head)
  if status ~= nil then return nil, status, problem end
  local length = framed_length(head)
  if length + 5 > MAX_REQUEST_BYTES then
    return nil, 8, "the request is larger than " .. MAX_REQUEST_BYTES .. " bytes"
  end
  if #head > length + 5 then return nil, 3, NOT_ONE_MESSAGE end
  local named, version, id = scan(setmetatable({text = head}, Text), #head, true)
  status, problem = wrong_request(named, id)
  if status ~= nil then return nil, status, problem end
  if named ~= model then return nil, 3, OTHER_MODEL end
  status, problem = wrong_version(model, version, route)
  if status ~= nil then return nil, status, problem end
  -- All three: whatever else the message says of them further on, this is what the server reads last.
  return text_field(1, model) .. text_field(2, version ~= "" and version or chosen)
    .. text_field(3, id ~= "" and id or new_id()), length
end

-- Notes what is wrong with a request that has been sent on, for its answer.
local function note_wrong(handle, status, problem)
  local noted = handle:streamInfo():dynamicMetadata()
  noted:set("headrace", "wrong_status", tostring(status))
  noted:set("headrace", "wrong", problem)
end

-- Changes a message while it passes.
local function stamp_passing(handle, route, model, chosen)
  local head, seen, total, appended, ended, last = "", 0, nil, nil, false, nil
  for chunk in handle:bodyChunks() do
    last = chunk
    local size = chunk:length()
    seen = seen + size
    if ended then
      if size > 0 then chunk:setBytes("") end
    elseif appended ~= nil then
      if seen == total then
        ended = true
        chunk:setBytes(chunk:getBytes(0, size) .. appended)
      elseif seen > total then
        ended = true
        note_wrong(handle, 3, NOT_ONE_MESSAGE)
        chunk:setBytes(chunk:getBytes(0, size - seen + total) .. string.rep("\7", #appended))
      end
    else
      head = head .. chunk:getBytes(0, size)
      if #head < HEAD_BYTES and (#head < 5 or #head < framed_length(head) + 5) then
        chunk:setBytes("")
      else
        local length, problem
        appended, length, problem = stamp_head(head, route, model, chosen)
        if appended == nil then
          ended = true
          note_wrong(handle, length, problem)
          chunk:setBytes(NO_MESSAGE)
        else
          total = length + 5
          ended = seen == total
          chunk:setBytes(frame(length + #appended) .. string.sub(head, 6) .. (ended and appended or ""))
        end
        head = nil
      end
    end
  end
  if ended then return end
  -- Without a body nothing has been sent on.
  if last == nil then return refuse_grpc(handle, wrong_prefix("")) end
  note_wrong(handle, 3, NOT_ONE_MESSAGE)
  -- The server would wait for the rest of its message, and answer nothing.
  if total == nil then
    last:setBytes(NO_MESSAGE)
  elseif total - seen <= MAX_FILLED_BYTES then
    last:setBytes(last:getBytes(0, last:length()) .. string.rep("\7", total - seen + #appended))
  end
end

local function stamp_grpc(handle)
  local model = handle:headers():get(MODEL_HEADER)
  if model == nil or model == "" then return stamp_whole(handle, nil) end
  local route, status, problem = find_for_grpc(handle, model)
  if route == nil then return refuse_grpc(handle, status, problem) end
  -- Whether a request is one to be shadowed, it says itself, by naming no version. Of one that waits until its model is loaded,
  -- what comes meanwhile could not be changed any more.
  if route.cold or (route.trial and route.trial.mirrored) then return stamp_whole(handle, model) end
  local chosen = pick(handle, route)
  if chosen == nil then return refuse_grpc(handle, no_version(model)) end
  go(handle, route, model)
  stamp_passing(handle, route, model, chosen)
end

-- What is asked of a model beside inference goes to a server that has it; of one that there is not, anywhere.
local function stamp_question(handle, method)
  local body = handle:body()
  local size = body and body:length() or 0
  if not MODEL_METHODS[method] or size < 5 then return end
  local model = scan(body, size)
  if model == nil or model == "" or #model > 128 or string.find(model, "[^%w._-]") then return end
  local route = find(handle, model)
  if route == nil then return handle:headers():replace(SHARD_HEADER, "server") end
  if route.cold and method == "ModelReady" then
    -- It may be asked. To look whether it is there must not load it, for monitors look all the time.
    handle:headers():replace(COLD_HEADER, "1")
    return handle:headers():replace(SHARD_HEADER, "server")
  end
  local problem = go(handle, route, model)
  if problem ~= nil then return refuse_grpc(handle, 14, problem) end
end

local QUOTE, BACKSLASH, OPENING_BRACKET, CLOSING_BRACKET, OPENING_BRACE, CLOSING_BRACE = string.byte('"\\[]{}', 1, 6)

local function too_deep(body, size)
  local depth, quoted, escaped = 0, false, false
  for first = 0, size - 1, SHORT_JSON_BYTES do
    local window = body:getBytes(first, math.min(SHORT_JSON_BYTES, size - first))
    for at = 1, #window do
      local byte = string.byte(window, at)
      if quoted then
        if escaped then
          escaped = false
        elseif byte == BACKSLASH then
          escaped = true
        elseif byte == QUOTE then
          quoted = false
        end
      elseif byte == QUOTE then
        quoted = true
      elseif byte == OPENING_BRACKET or byte == OPENING_BRACE then
        depth = depth + 1
        if depth > MAX_JSON_DEPTH then return true end
      elseif byte == CLOSING_BRACKET or byte == CLOSING_BRACE then
        depth = math.max(0, depth - 1)
      end
    end
  end
  return false
end

-- Reads a request whole, so that Envoy's limit holds here as it does for gRPC, and refuses what Triton must not see.
-- Of what is compressed, gzip has been unpacked before. Tensors may follow the JSON as they are.
local function refused(handle)
  local encoding = handle:headers():get("content-encoding")
  if encoding ~= nil and encoding ~= "identity" then
    refuse_rest(handle, 415, "of compressed requests only gzip is supported; send it so, or uncompressed")
    return true
  end
  -- What was read of a request before its body is not there any more.
  local json = string.match(handle:headers():get("inference-header-content-length") or "", "^%d+$")
  local body = handle:body()
  local size = body and body:length() or 0
  if json then size = math.min(size, tonumber(json)) end
  if size > SHORT_JSON_BYTES and too_deep(body, size) then
    refuse_rest(handle, 400, "the request's JSON is nested more than " .. MAX_JSON_DEPTH .. " deep")
    return true
  end
  return false
end

local function stamp_rest(handle, path)
  local model, rest = string.match(path, "^/v2/models/([^/?]+)(.*)$")
  if model == nil then return end
  local route = find(handle, model)
  if route == nil then return refuse_rest(handle, 404, unknown_model(model)) end
  local version, asked = string.match(rest, "^/versions/([^/?]+)(.*)$")
  -- Questions about the model are not limited, as of gRPC.
  if string.match(asked or rest, "^/infer") then note_model(handle, model) end
  if refused(handle) then return end
  if version ~= nil then
    if route.weights[version] == nil then
      return refuse_rest(handle, 404, unknown_version(model, version, route.weights))
    end
  elseif string.match(rest, "^/infer") then
    local chosen = pick(handle, route)
    if chosen == nil then return refuse_rest(handle, 503, "model " .. model .. " has no version with traffic") end
    mirror(handle, route, "triton-http-mirror")
    handle:headers():replace(":path", "/v2/models/" .. model .. "/versions/" .. chosen .. rest)
  end
  if route.cold and string.match(asked or rest, "^/ready") then
    local ready = '{"name": "' .. model .. '", "ready": true}'
    return handle:respond({[":status"] = "200", ["content-type"] = "application/json"}, ready)
  end
  local problem = go(handle, route, model)
  if problem ~= nil then return refuse_rest(handle, 503, problem) end
end

-- The protocol's index: of a server it would be what that one has.
local function list_models(handle)
  local body = handle:body()
  local text = body and body:length() > 0 and body:getBytes(0, math.min(body:length(), SHORT_JSON_BYTES)) or ""
  local ready = string.find(text, '"ready"%s*:%s*true')
  local listed, problem = ask_service(handle, "ListModels", ready and "\8\1" or "", LIST_MILLISECONDS)
  if listed == nil then return refuse_rest(handle, 503, problem) end
  handle:respond({[":status"] = "200", ["content-type"] = "application/json"}, listed)
end

function envoy_on_request(handle)
  local path = handle:headers():get(":path")
  if path == INFER then return stamp_grpc(handle) end
  handle:headers():replace(SHARD_HEADER, "server")
  if string.sub(path, 1, 11) == "/v2/models/" then
    stamp_rest(handle, path)
  elseif string.sub(path, 1, #SERVICE) == SERVICE then
    -- A stream's requests come back one by one.
    if path ~= STREAM then stamp_question(handle, string.sub(path, #SERVICE + 1)) end
  elseif refused(handle) then
    return
  elseif path == INDEX and handle:headers():get(":method") == "POST" then
    list_models(handle)
  else
    local health = string.match(path, "^/v2/health/(%l+)")
    if health ~= nil then handle:streamInfo():dynamicMetadata():set("headrace", "health", health) end
  end
end

-- Triton answers its health in the status alone; the protocol has a body too, which KServe's client reads.
local function tell_health(handle)
  local noted = handle:streamInfo():dynamicMetadata():get("headrace")
  if noted == nil or noted.health == nil then return end
  local length = handle:body(true):setBytes('{"' .. noted.health .. '": true}')
  handle:headers():replace("content-length", tostring(length))
  handle:headers():replace("content-type", "application/json")
end

local function noted_wrong(handle)
  local noted = handle:streamInfo():dynamicMetadata():get("headrace")
  return noted and noted.wrong and noted
end

local function called_model(handle)
  local request = handle:requestHeaders()
  local model = string.match(request and request:get(SHARD_HEADER) or "", ";(.*)$")
  return model and known(handle, model)
end

-- UTF-8 beyond ASCII, as the Unicode Standard's table of well-formed sequences has it.
local WELL_FORMED = {
  "[\194-\223][\128-\191]", "\224[\160-\191][\128-\191]", "[\225-\236\238\239][\128-\191][\128-\191]",
  "\237[\128-\159][\128-\191]", "\240[\144-\191][\128-\191][\128-\191]",
  "[\241-\243][\128-\191][\128-\191][\128-\191]", "\244[\128-\143][\128-\191][\128-\191]",
}

-- A server that has not loaded a model yet, after a restart say, knows none of that name. But it is deployed, and live: else the
-- request would have been refused on its way.
local NOT_LOADED = "Request for unknown model"
local LOADING = "the model is being loaded; try again"

-- Triton tells callers their own bytes, and JSON takes none that are no text.
local function as_text(bytes)
  return (string.gsub(bytes, "[\128-\255]+", function(some)
    local left = some
    for _, sequence in ipairs(WELL_FORMED) do left = string.gsub(left, sequence, ".") end
    if string.find(left, "[\128-\255]") then return string.rep("?", #some) end
  end))
end

local REWRITTEN = {["400"] = true, ["404"] = true, ["500"] = true}

-- REST's answers to wrong requests and failures. Triton calls JSON that it cannot read a failure of its own.
local function tell_wrong(handle, body, signature)
  local headers = handle:headers()
  local text = as_text(body:getBytes(0, math.min(body:length(), 4096)))
  local message = string.match(text, '^%s*{%s*"error"%s*:%s*"(.*)"%s*}%s*$')
  if message and (string.find(message, "^failed to parse ") or string.find(message, "^Unable to parse ")) then
    headers:replace(":status", "400")
  end
  local told
  if headers:get(":status") == "500" then
    told = string.gsub(text, "\\n\\nAt:.*$", '"}')
  elseif message and string.find(message, NOT_LOADED, 1, true) == 1 then
    headers:replace(":status", "503")
    told = '{"error": "' .. LOADING .. '"}'
  elseif headers:get(":status") == "404" then
    return
  else
    told = '{"error": "' .. (message or "invalid request") .. " | expected: " .. signature .. '"}'
  end
  headers:replace("content-length", tostring(body:setBytes(told)))
end

-- After a wrong request the caller is told what the model takes. Where in its code a model failed is not for callers.
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("grpc-status")
  local wrong = status ~= nil and status ~= "0" and noted_wrong(handle)
  if wrong then
    headers:replace("grpc-status", wrong.wrong_status)
    headers:replace("grpc-message", wrong.wrong)
    return
  end
  -- gRPC's own words, whose status says that the server failed.
  if status == "13" and headers:get("grpc-message") == "Unable to parse request" then
    status = "3"
    headers:replace("grpc-status", status)
  end
  if status == "5" and string.find(headers:get("grpc-message") or "", NOT_LOADED, 1, true) == 1 and called_model(handle) then
    headers:replace("grpc-status", "14")
    headers:replace("grpc-message", LOADING)
  elseif status == "13" then
    local message = string.gsub(headers:get("grpc-message") or "", "%%0A%%0AAt:.*$", "")
    headers:replace("grpc-message", message)
  elseif status == "3" then
    local route = called_model(handle)
    if route ~= nil and route.signature ~= nil then
      headers:replace("grpc-message", (headers:get("grpc-message") or "") .. " | expected: " .. route.signature)
    end
  elseif status == nil and REWRITTEN[headers:get(":status")] then
    local route = called_model(handle)
    local body = route and handle:body()
    if body then tell_wrong(handle, body, route.signature) end
  elseif headers:get("content-length") == "0" and headers:get(":status") == "200" then
    tell_health(handle)
  end
end
