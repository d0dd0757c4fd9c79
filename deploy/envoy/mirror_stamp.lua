-- Makes the copy of a mirrored request one to the version that shadows: version_stamp.lua, through which the request came
-- before it was copied, named that version in a header.
--
-- gRPC: in Protobuf the last value of a field wins, so the version (field 2) is appended behind the live one. REST: the
-- version in the path is replaced.

local VERSION = "x-headrace-shadow-version"
local INFER = "/inference.GRPCInferenceService/ModelInfer"

function envoy_on_request(handle)
  local headers = handle:headers()
  local version, path = headers:get(VERSION), headers:get(":path")
  if path ~= INFER then
    headers:replace(":path", (string.gsub(path, "^(/v2/models/[^/]+/versions/)[^/]+", "%1" .. version)))
    return
  end
  local body = handle:body()
  -- A version's number has fewer than 128 digits: its length is one byte.
  local appended = "\18" .. string.char(#version) .. version
  local length = body:length() - 5 + #appended
  body:setBytes(
    string.char(0, math.floor(length / 16777216) % 256, math.floor(length / 65536) % 256,
      math.floor(length / 256) % 256, length % 256) .. body:getBytes(5, body:length() - 5) .. appended)
end
